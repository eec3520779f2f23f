"""How is a picture made small enough to look at? Whole groups as single nodes, constants in the text of their users."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..dims import Size
from .fold import redirect
from .picture import ROOT, Group, Node, Picture


def collapse(picture: Picture, groups: Collection[str]) -> Picture:
    """Each of `groups` drawn as one node, which has the id of the group and the sums of what was inside."""
    shown: dict[str, str] = {}
    nodes: dict[str, Node] = {}
    whole: dict[str, list[Node]] = {}
    outermost: dict[str, str] = {ROOT: ROOT}
    for group in picture.groups.values():
        inside = outermost[group.parent]
        outermost[group.id] = inside or (group.id if group.id in groups else ROOT)
        if inside:
            shown[group.id] = inside
    for node in picture.nodes.values():
        inside = outermost[node.group]
        if inside:
            shown[node.id] = inside
            whole.setdefault(inside, []).append(node)
            # Where the last of the group stands, all that it reads stands before it.
            nodes.pop(inside, None)
            nodes[inside] = node
        else:
            nodes[node.id] = node
    nodes.update({name: _whole(picture.groups[name], members) for name, members in whole.items()})
    kept = {name: group for name, group in picture.groups.items() if not outermost[name]}
    earlier = {name: shown.get(target, target) for name, target in picture.shown.items()}
    edges = redirect(picture.edges, shown, nodes)
    return replace(picture, nodes=nodes, edges=edges, groups=kept, shown={**earlier, **shown})


def _whole(group: Group, members: list[Node]) -> Node:
    flops: Size | None = 0
    for node in members:
        flops = None if flops is None or node.flops is None else flops + node.flops
    ops = sum(not node.is_leaf for node in members)
    weights = [node for node in members if node.family in ("weight", "module")]
    return Node(
        id=group.id,
        op="module",
        family="module",
        label=group.label,
        group=group.parent,
        attributes={"ops": str(ops), **({"folded": group.note} if group.note else {})},
        path=group.id,
        parameters=sum(node.parameters for node in weights),
        bytes=sum(node.bytes for node in weights),
        flops=flops,
    )


def fit(picture: Picture, max_nodes: int) -> Picture:
    """The picture with its innermost groups collapsed, level by level, until it has at most `max_nodes` nodes.

    It may stay larger: what lies in no group cannot be collapsed. `note` says what was done.
    """
    depths = {ROOT: 0}
    for group in picture.groups.values():
        depths[group.id] = depths[group.parent] + 1
    smaller = picture
    for depth in range(max(depths.values()), 0, -1):
        if len(smaller.nodes) <= max_nodes:
            break
        smaller = collapse(picture, {name for name, at in depths.items() if at == depth})
        smaller = replace(smaller, note=f"modules below level {depth} are drawn as one node each")
    return smaller


def inline_constants(picture: Picture) -> Picture:
    """Numbers that fill a whole tensor, written into the ops that read them instead of drawn as nodes."""
    numbers = {node.id: node.label for node in picture.nodes.values() if node.op == "prim.constant"}
    said: dict[str, dict[str, str]] = {}
    edges = []
    for edge in picture.edges:
        if edge.source in numbers:
            said.setdefault(edge.target, {})[edge.operand] = numbers[edge.source]
        else:
            edges.append(edge)
    nodes = {
        name: replace(node, attributes={**said[name], **node.attributes}) if name in said else node
        for name, node in picture.nodes.items()
        if name not in numbers
    }
    return replace(picture, nodes=nodes, edges=tuple(edges))
