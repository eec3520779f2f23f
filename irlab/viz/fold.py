"""Which layers of a picture are the same but for their weights? `fold` draws one of them for all.

Numbered siblings ("model.layers.0", "model.layers.1") are compared op by op: names, attributes, types, nested groups
and how values flow between them. Siblings may be equal in any order, so that alternating layers fold into two. Lists
inside what is left (the experts of a layer) fold in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from .picture import ROOT, Edge, Group, Node, Picture

MIN_OPS: Final = 3
"""A group of fewer ops than this is not worth folding: the steps of a Sequential are not layers."""

MAX_LISTED: Final = 3
"""Layers at equal distances are listed up to here."""


def fold(picture: Picture) -> Picture:
    """The picture with the first of several equal layers drawn for all of them."""
    return _Folder(picture).fold()


def redirect(edges: Iterable[Edge], shown: Mapping[str, str], nodes: Mapping[str, Node]) -> tuple[Edge, ...]:
    """`edges` between the `nodes` that are drawn: each end moved to what is `shown` for it, without repetitions.

    An edge that then goes against the order of `nodes` is carried from one layer to the next; one that would come back
    to its own node is dropped.
    """
    place = {name: number for number, name in enumerate(nodes)}
    found: dict[Edge, None] = {}
    for edge in edges:
        source, target = shown.get(edge.source, edge.source), shown.get(edge.target, edge.target)
        if source == edge.source and target == edge.target:
            found[edge] = None
        elif source != target:
            carried = edge.carried or place[source] > place[target]
            found[replace(edge, source=source, target=target, carried=carried)] = None
    return tuple(found)


class _Folder:
    """Decides which members of which group are drawn for others (`shown`)."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.place = {name: number for number, name in enumerate(picture.nodes)}
        self.into: dict[str, list[Edge]] = {}
        for edge in picture.edges:
            self.into.setdefault(edge.target, []).append(edge)
        self.shown: dict[str, str] = {}
        self.groups: dict[str, Group] = {}

    def fold(self) -> Picture:
        self._visit(ROOT)
        picture = self.picture
        shown = {name: _last(self.shown, name) for name in self.shown}
        groups = {name: self.groups.get(name, group) for name, group in picture.groups.items() if name not in shown}
        nodes = {name: node for name, node in picture.nodes.items() if name not in shown}
        earlier = {name: shown.get(target, target) for name, target in picture.shown.items()}
        edges = redirect(picture.edges, shown, nodes)
        return replace(picture, nodes=nodes, edges=edges, groups=groups, shown={**earlier, **shown})

    def _visit(self, parent: str) -> None:
        """Fold the numbered groups directly inside `parent`, then look inside those that stay."""
        classes: dict[object, list[_Layer]] = {}
        for group in self.picture.children[parent]:
            if group.label.isdigit():
                layer = _Layer(self, group)
                if len(layer.ops) >= MIN_OPS:
                    classes.setdefault(layer.signature, []).append(layer)
        for first, *others in classes.values():
            for other in others:
                self.shown.update(zip(other.members, first.members))
            if others:
                self.groups[first.group.id] = _standing_for(first.group, [layer.group for layer in others])
        for group in self.picture.children[parent]:
            if group.id not in self.shown:
                self._visit(group.id)


class _Layer:
    """A group seen from inside. Equal layers have equal `signature`s, and `members` (groups and nodes) in one order."""

    def __init__(self, folder: _Folder, group: Group) -> None:
        picture = folder.picture
        self.group = group
        nodes = sorted(picture.inside(group.id), key=lambda node: folder.place[node.id])
        self.ops = [node for node in nodes if not node.is_leaf]
        groups = [group.id, *_nested(picture, group.id)]
        own = {node.id: node for node in nodes}
        start = len(group.id)
        # A value is known by where the layer makes it, and one from outside by when it is first read.
        values: dict[tuple[str, int], object] = {}
        leaves: dict[str, None] = {}
        lines = []
        for number, node in enumerate(self.ops):
            operands = []
            for edge in folder.into.get(node.id, ()):
                value = (edge.source, edge.output)
                if value not in values:
                    leaf = own.get(edge.source)
                    values[value] = (len(values), edge.type, None if leaf is None else _look(leaf, start))
                    if leaf is not None:
                        leaves[edge.source] = None
                operands.append((edge.operand, values[value]))
            values.update({(node.id, output): (number, output) for output in range(len(node.types))})
            lines.append((_look(node, start), tuple(operands)))
        unread = [node for node in nodes if node.is_leaf and node.id not in leaves]
        self.members = [*groups, *[node.id for node in self.ops], *leaves, *[node.id for node in unread]]
        inner = [name[start:] for name in groups]
        self.signature = (tuple(lines), tuple(inner), tuple([_look(node, start) for node in unread]))


def _look(node: Node, start: int) -> tuple[object, ...]:
    """What a node looks like in whatever layer; weights and inputs count by type, not by name."""
    said = node.label if node.family == "constant" else node.op
    return (said, node.group[start:], node.types, tuple(node.attributes.items()))


def _nested(picture: Picture, group: str) -> Iterator[str]:
    for child in sorted(picture.children[group], key=lambda child: child.label):
        yield child.id
        yield from _nested(picture, child.id)


def _last(shown: Mapping[str, str], name: str) -> str:
    """What is drawn for `name` in the end: layers fold into layers whose lists fold again."""
    while name in shown:
        name = shown[name]
    return name


def _standing_for(first: Group, others: list[Group]) -> Group:
    stack = first.id.rpartition(".")[0].rpartition(".")[2] or "group"
    one = stack.removesuffix("s")
    numbers = [int(group.label) for group in others]
    note = f"{stack if len(numbers) > 1 else one} {ranges(numbers)}: same as {one} {first.label}"
    return replace(first, note=note, folded=tuple([group.id for group in others]))


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as text: [1, 2, 3, 7] -> "1-3, 7"; [0, 2, 4, 6] -> "0, 2 ... 6"."""
    rest = sorted(numbers)
    parts = []
    while rest:
        step = rest[1] - rest[0] if len(rest) > 1 else 0
        count = 1
        while count < len(rest) and rest[count] - rest[count - 1] == step:
            count += 1
        if step == 1:
            parts.append(f"{rest[0]}-{rest[count - 1]}")
        elif count > MAX_LISTED:
            parts.append(f"{rest[0]}, {rest[1]} ... {rest[count - 1]}")
        else:
            count = 1
            parts.append(str(rest[0]))
        del rest[:count]
    return ", ".join(parts)
