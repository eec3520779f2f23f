"""How does a picture read in Model Explorer (ai-edge-model-explorer)? A graph collection, and node data beside it.

The format is that of the package's `graph_builder.py` and `node_data_builder.py` (version 0.1.34): a collection is
`{"label", "graphs": [{"id", "nodes": [...]}]}`, node data `{graph id: {"results": {node id: {"value"}}}}`. Model
Explorer collapses by namespace itself, so it is given every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..cost import Sizes, at
from .families import FAMILIES
from .picture import ROOT, Edge, Node, Picture
from .quantities import bytes_text, count_text, flops_text

_HEAT: Final = [
    {"stop": 0, "bgColor": "#fff8e1"},
    {"stop": 0.5, "bgColor": "#f6a65b"},
    {"stop": 1, "bgColor": "#b3261e"},
]


def collection(picture: Picture) -> dict[str, Any]:
    """The graph collection with `picture` as its one graph, as JSON-like data."""
    namespaces = _namespaces(picture)
    incoming: dict[str, list[Edge]] = {}
    for edge in picture.edges:
        incoming.setdefault(edge.target, []).append(edge)
    graph = {
        "id": picture.name,
        "nodes": [_node(node, namespaces[node.group], incoming.get(node.id, [])) for node in picture.nodes.values()],
        "groupNodeAttributes": {namespaces[name]: facts for name, facts in _group_facts(picture)},
        "layoutConfigs": {"keepLayersWithASingleChild": False},
    }
    return {"label": picture.name, "graphs": [graph]}


def node_data(picture: Picture, figures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Node data by figure name. `figures` gives each figure's values by node id, weight name or group id; the value of
    a group holds for the ops in it that have none of their own."""
    found = {}
    for name, values in figures.items():
        results = {}
        for node in picture.nodes.values():
            own = (node.id, node.weight.name) if node.weight else (node.id,)
            around = () if node.is_leaf else tuple(picture.around(node.group))
            key = next((key for key in (*own, *around) if key in values), None)
            if key is not None:
                results[node.id] = {"value": values[key]}
        if results:
            found[name] = {picture.name: {"name": name, "results": results, "gradient": _HEAT}}
    return found


def own_figures(picture: Picture, sizes: Sizes) -> dict[str, dict[str, float]]:
    """What the picture itself knows of its nodes: bytes and parameters of weights, FLOPs at `sizes`."""
    nodes = picture.nodes.values()
    return {
        "bytes": {node.id: node.bytes for node in nodes if node.weight is not None},
        "parameters": {node.id: node.parameters for node in nodes if node.weight is not None},
        "flops": {node.id: at(node.flops, sizes) for node in nodes if node.flops},
    }


def _node(node: Node, namespace: str, incoming: list[Edge]) -> dict[str, Any]:
    family = FAMILIES[node.family]
    return {
        "id": node.id,
        "label": node.label,
        "namespace": namespace,
        "attrs": [{"key": key, "value": value} for key, value in _facts(node)],
        "incomingEdges": [
            {"sourceNodeId": edge.source, "sourceNodeOutputId": str(edge.output), "targetNodeInputId": str(slot)}
            for slot, edge in enumerate(incoming)
        ],
        "inputsMetadata": [
            {"id": str(slot), "attrs": [{"key": "__tensor_tag", "value": edge.operand}]}
            for slot, edge in enumerate(incoming)
            if edge.operand
        ],
        "outputsMetadata": [
            {"id": str(output), "attrs": _output(node, output, type)} for output, type in enumerate(node.types)
        ],
        "style": {"backgroundColor": family.fill, "borderColor": family.line},
    }


def _output(node: Node, output: int, type: str) -> list[dict[str, str]]:
    element, _, shape = type.rpartition("[")
    name = node.id if len(node.types) == 1 else f"{node.id}#{output}"
    # Model Explorer writes `tensor_shape` on edges.
    facts = (("tensor_name", name), ("dtype", element), ("tensor_shape", type), ("shape", f"[{shape}"))
    return [{"key": key, "value": value} for key, value in facts]


def _facts(node: Node) -> Iterator[tuple[str, str]]:
    yield "op", node.op
    yield "family", node.family
    yield from node.attributes.items()
    if node.path:
        yield "module path", node.path
    if node.source:
        yield "source", node.source
    if node.made_by:
        yield "made by", node.made_by
    if node.weight is not None:
        yield "encoding", node.weight.element
    if node.parameters:
        yield "parameters", count_text(node.parameters)
        yield "bytes", bytes_text(node.bytes)
    if node.flops != 0:
        yield "work", flops_text(node.flops)


def _group_facts(picture: Picture) -> Iterator[tuple[str, dict[str, str]]]:
    for name in (ROOT, *picture.groups):
        inside = list(picture.inside(name))
        weights = [node for node in inside if node.weight is not None]
        facts = {"ops": str(sum(not node.is_leaf for node in inside))}
        if weights:
            facts["parameters"] = count_text(sum(node.parameters for node in weights))
            facts["bytes"] = bytes_text(sum(node.bytes for node in weights))
        if name:
            facts["path"] = name
        yield name, facts


def _namespaces(picture: Picture) -> dict[str, str]:
    """The namespace of each group: its labels from outside in; a slash separates, so no part may hold one."""
    found = {ROOT: ""}
    for group in picture.groups.values():
        # Two `if`s may stand in one module: their frames are told apart by their ids.
        part = group.label if group.kind == "module" else group.id.rstrip("/").rpartition("/")[2]
        around = found[group.parent]
        found[group.id] = f"{around}/{part.replace('/', '_')}" if around else part.replace("/", "_")
    return found
