"""Where do the contents of a box go? Graphviz decides, by the library that pygraphviz brings along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

POINTS_PER_INCH: Final = 72
NODE_GAP, LAYER_GAP, PORT_GAP = 18, 26, 6

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Layout:
    """Positions in pixels from the top left corner: the centre of every slot, and for each edge its two slots and the
    control points of a chain of cubic Béziers (x, y, x, y ...)."""

    width: int
    height: int
    centres: tuple[Size, ...]
    edges: tuple[tuple[int, int, tuple[int, ...]], ...]


def lay_out(sizes: Sequence[Size], ins: int, outs: int, edges: Sequence[tuple[int, int]]) -> Layout:
    """Place slots of these sizes, top to bottom along `edges`. The last `ins` + `outs` of them are ports: where values
    enter, at the top, and where they leave, at the bottom."""
    graph = _graph()
    for slot, (width, height) in enumerate(sizes):
        graph.add_node(slot, width=width / POINTS_PER_INCH, height=height / POINTS_PER_INCH)
    children = len(sizes) - ins - outs
    for rank, first, count in (("source", children, ins), ("sink", children + ins, outs)):
        if count:
            graph.add_subgraph(list(range(first, first + count)), rank=rank)
    for key, (source, target) in enumerate(edges):
        graph.add_edge(source, target, key=key)
    graph.layout("dot")
    left, bottom, right, top = map(float, graph.graph_attr["bb"].split(","))

    def points(text: str) -> list[Size]:
        pairs = [pair.split(",") for pair in text.split()]
        return [(round(float(x) - left), round(top - float(y))) for x, y in pairs]

    centres = [points(graph.get_node(slot).attr["pos"])[0] for slot in range(len(sizes))]
    drawn = []
    for key, (source, target) in enumerate(edges):
        # "e,x,y" is where the arrow ends; what follows is the curve up to its head.
        end, *curve = graph.get_edge(source, target, key).attr["pos"].removeprefix("e,").split()
        flat = points(" ".join([*curve[:-1], end]))
        drawn.append((source, target, tuple([number for point in flat for number in point])))
    return Layout(round(right - left), round(top - bottom), tuple(centres), tuple(drawn))


def _graph() -> Any:
    import pygraphviz

    graph = pygraphviz.AGraph(directed=True, strict=False)
    graph.graph_attr.update(nodesep=NODE_GAP / POINTS_PER_INCH, ranksep=LAYER_GAP / POINTS_PER_INCH)
    graph.node_attr.update(shape="box", fixedsize="true", label="")
    return graph
