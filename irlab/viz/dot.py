"""Graphviz pictures: clusters by module path, symbolic shapes on edges, encodings and sizes on weights."""

from __future__ import annotations

from typing import Any

from ..ir import Graph, Module, Op, Return, Value, Weight
from ..ops import prim
from .fold import Folding, fold

MAX_NODES = 5_000
"""Above this many nodes graphviz takes minutes: the picture is refused."""

_FAMILY_COLOURS = {"nn": "#cfe8ff", "prim": "#eeeeee", "ctl": "#ffe4b3", "call": "#ffd0d0", "return": "#d5f5d5"}
_WEIGHT_COLOUR = "#fff5c2"


def draw(module: Module, *, full: bool = False) -> Any:
    """The picture of `module` as a `pydot.Dot`. Raises InputError where it would be too large to lay out."""
    try:
        import pydot
    except ImportError:
        from ..errors import InputError

        raise InputError("drawing graphs needs pydot", "pip install 'irlab[viz]'") from None
    graph = module.graph
    folding = Folding({op: op for op in graph.topo()}) if full else fold(graph)
    shown = dict.fromkeys(folding.shown.values())
    if len(shown) > MAX_NODES:
        from ..errors import InputError

        raise InputError(
            f"{len(shown)} nodes are more than graphviz can lay out", "run fuse first, or dump without --dump-full"
        )
    picture = pydot.Dot(_quote(module.name), graph_type="digraph", rankdir="TB", fontname="Helvetica")
    picture.set_node_defaults(shape="box", style="filled,rounded", fontname="Helvetica", fontsize="10")
    picture.set_edge_defaults(fontname="Helvetica", fontsize="8", color="#777777")
    clusters = _Clusters(picture, folding)
    names = {op: f"op{number}" for number, op in enumerate(shown)}
    for number, value in enumerate(graph.inputs):
        picture.add_node(pydot.Node(f"in{number}", label=_quote(f"%{value.name}\n{value.type}"), fillcolor="#d5f5d5"))
    for op in shown:
        clusters.at(op).add_node(pydot.Node(names[op], label=_quote(_label(op)), fillcolor=_colour(op)))
    for source, target, label in _edges(graph, folding, names):
        picture.add_edge(pydot.Edge(source, target, label=_quote(label)))
    return picture


class _Clusters:
    """The nested subgraphs of module paths, made when first needed."""

    def __init__(self, picture: Any, folding: Folding) -> None:
        self._found: dict[str, Any] = {"": picture}
        self._folding = folding

    def at(self, op: Op) -> Any:
        return self._cluster(op.loc.path if op.loc else "")

    def _cluster(self, path: str) -> Any:
        import pydot

        if path not in self._found:
            parent, _, last = path.rpartition(".")
            label = self._folding.repeats.get(path)
            cluster = pydot.Cluster(
                f"c{len(self._found)}",
                label=_quote(f"{last}\n{label}" if label else last),
                color="#bbbbbb",
                style="rounded",
                fontname="Helvetica",
                fontsize="10",
            )
            self._cluster(parent).add_subgraph(cluster)
            self._found[path] = cluster
        return self._found[path]


def _edges(graph: Graph, folding: Folding, names: dict[Op, str]) -> list[tuple[str, str, str]]:
    inputs = {value: f"in{number}" for number, value in enumerate(graph.inputs)}
    found: dict[tuple[str, str, str], None] = {}
    for op in graph.topo():
        target = names[folding.shown[op]]
        for value in op.operands:
            if value is not None:
                source = inputs[value] if value.op is None else names[folding.shown[value.op]]
                found[source, target, _edge_label(value)] = None
    # A layer that stands for several feeds itself; drawn, that would be a loop.
    return [edge for edge in found if edge[0] != edge[1]]


def _edge_label(value: Value) -> str:
    return "" if isinstance(value.op, Weight | prim.Constant) else str(value.type)


def _label(op: Op) -> str:
    if isinstance(op, Weight):
        return f"@{op.symbol.name}\n{op.symbol.type}"
    if isinstance(op, prim.Constant):
        return f"{op.value}"
    if isinstance(op, Return):
        return "return " + ", ".join(op.names[:4]) + (" ..." if len(op.names) > 4 else "")
    changed = [f.name for f in op.fields if f.name in op.attribute_names and getattr(op, f.name) != f.default]
    lines = [op.opname, *(f"{name}={getattr(op, name)}" for name in changed)]
    if op.loc and op.loc.made_by:
        lines.append(f"by {op.loc.made_by}")
    return "\n".join(lines)


def _colour(op: Op) -> str:
    return _WEIGHT_COLOUR if isinstance(op, Weight) else _FAMILY_COLOURS.get(op.opname.split(".")[0], "#ffffff")


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
