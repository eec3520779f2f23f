"""How does a graph read in NetworkX? Everything the picture knows, as attributes to compute with."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..ir import Graph, Module
from .from_graph import picture_of
from .picture import Picture

if TYPE_CHECKING:
    import networkx


def to_networkx(graph: Graph | Module | Picture) -> networkx.MultiDiGraph[str]:
    """The graph as a `networkx.MultiDiGraph`: a node per op, weight and input, an edge per operand.

    Nodes have the fields of `Node` as attributes (`op`, `family`, `group`, `path`, `attributes`, `types`, `parameters`,
    `bytes`, `flops`: an int, or a polynomial of the symbolic sizes (`irlab.dims.substitute` fills them in), ...), edges
    those of `Edge` (`type`, `operand`, `output`), and the graph has its `name` and its `groups` (by id, the `Group`s).
    A picture that was folded or collapsed is taken as it is. Raises InputError where NetworkX is not installed.

    >>> g = to_networkx(irlab.load("demo"))
    >>> networkx.dag_longest_path_length(networkx.DiGraph(g))
    >>> [name for name, op in g.nodes(data="op") if op == "nn.linear"]
    """
    try:
        import networkx
    except ImportError:
        raise InputError("this needs NetworkX", "pip install 'irlab[viz]'") from None
    picture = graph if isinstance(graph, Picture) else picture_of(graph)
    out: networkx.MultiDiGraph[str] = networkx.MultiDiGraph(name=picture.name, groups=dict(picture.groups))
    for node in picture.nodes.values():
        out.add_node(node.id, **_fields(node, "id"))
    for edge in picture.edges:
        out.add_edge(edge.source, edge.target, **_fields(edge, "source", "target"))
    return out


def _fields(value: Any, *without: str) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value) if f.name not in without}
