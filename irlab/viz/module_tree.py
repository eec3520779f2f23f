"""How are the ops of a state arranged in nested boxes that a page can fold? By module, with equal layers in one stack.

A box has slots: its children, then its ports, where values enter and leave. Edges join slots, so each box can be laid
out alone, and boxes that look the same share a layout whatever their values and weights are called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from .timeline import INPUT, OpVersion

MAX_OPS: Final = 120
"""More ops than this directly in one box are shared out among numbered boxes: laying them out takes time, and so does
finding one's way."""

MAX_PORTS: Final = 8
"""More values than this enter or leave through shared ports, by the slots that they join."""

MIN_STACK: Final = 2
"""So many equal layers after the first become a stack."""

_NUMBERED: Final = re.compile(r"^(.*?)(\d+)$")

Slot: TypeAlias = int

Port: TypeAlias = tuple[str, ...]
"""The names of the values that pass through."""


@dataclass
class Box:
    """A module (or a part of one) with what is in it. `path` is unique within a state.

    `children` are boxes and indices of op versions. `ins` and `outs` are the ports of the values that enter and leave.
    `edges` join slots: children first, then ins, then outs. `stack` is set for a box that holds equal layers.
    """

    path: str
    label: str
    children: list[Box | int] = field(default_factory=list)
    ins: list[Port] = field(default_factory=list)
    outs: list[Port] = field(default_factory=list)
    edges: list[tuple[Slot, Slot]] = field(default_factory=list)
    stack: bool = False

    def boxes(self) -> list[Box]:
        """The boxes directly inside."""
        return [child for child in self.children if isinstance(child, Box)]

    def ops(self) -> list[int]:
        """All op versions inside, at any depth."""
        return [op for child in self.children for op in (child.ops() if isinstance(child, Box) else (child,))]


def module_tree(versions: Sequence[OpVersion], state: Sequence[int]) -> Box:
    """The boxes of a state: indices into `versions`, producers first."""
    root = _by_path(versions, _reading_order(versions, state))
    _divide(root)
    _dissolve(root)
    _connect(root, versions, state)
    if _stack(root, looks(root, versions)):
        _connect(root, versions, state)
    return root


def _reading_order(versions: Sequence[OpVersion], state: Sequence[int]) -> Iterable[int]:
    """The state with each input right before what first reads it: boxes come in the order of their first op."""
    inputs = {versions[index].outs[0]: index for index in state if versions[index].opname == INPUT}
    for index in state:
        if versions[index].opname != INPUT:
            yield from [inputs.pop(name) for _, name in versions[index].ins if name in inputs]
            yield index
    yield from inputs.values()


def _by_path(versions: Sequence[OpVersion], order: Iterable[int]) -> Box:
    found = {"": Box("", "")}

    def at(path: str) -> Box:
        box = found.get(path)
        if box is None:
            parent, _, label = path.rpartition(".")
            box = found[path] = Box(path, label)
            at(parent).children.append(box)
        return box

    for index in order:
        at(versions[index].path).children.append(index)
    return found[""]


def _divide(box: Box) -> None:
    """Share out the ops of a box that holds too many, in their order."""
    for child in box.boxes():
        _divide(child)
    ops = [child for child in box.children if isinstance(child, int)]
    if len(ops) <= MAX_OPS:
        return
    parts = []
    for start in range(0, len(ops), MAX_OPS):
        part = ops[start : start + MAX_OPS]
        label = f"ops {start + 1}–{start + len(part)}"
        parts.append(Box(f"{box.path}.{label}" if box.path else label, label, list(part)))
    box.children = [*parts, *box.boxes()]
    _divide(box)


def _dissolve(box: Box) -> None:
    """Leave out boxes that would only wrap one op, or only wrap other boxes; but a layer stays a box."""
    children: list[Box | int] = []
    for child in box.children:
        if isinstance(child, Box):
            _dissolve(child)
            inner = child.boxes()
            if len(child.children) == 1 and not inner:
                children += child.children
                continue
            if len(inner) == len(child.children) and not child.label.isdecimal():
                for each in inner:
                    each.label = f"{child.label}.{each.label}"
                children += inner
                continue
        children.append(child)
    box.children = children


def _stack(box: Box, look: Mapping[int, int]) -> bool:
    """Put equal neighbours of a numbered box into one box behind it; whether there were any, here or inside."""
    found = False
    numbered: dict[str, list[tuple[int, Box]]] = {}
    for child in box.boxes():
        found |= _stack(child, look)
        if match := _NUMBERED.match(child.label):
            numbered.setdefault(match[1], []).append((int(match[2]), child))
    for stem, rows in numbered.items():
        rows.sort(key=lambda row: row[0])
        for run in _runs(rows, look):
            if len(run) > MIN_STACK:
                _fold(box, stem, run)
                found = True
    return found


def _runs(rows: Sequence[tuple[int, Box]], look: Mapping[int, int]) -> Iterable[list[tuple[int, Box]]]:
    """Rows in runs of consecutive numbers that look the same."""
    run: list[tuple[int, Box]] = []
    for number, box in rows:
        if run and (number != run[-1][0] + 1 or look[id(box)] != look[id(run[-1][1])]):
            yield run
            run = []
        run.append((number, box))
    yield run


def _fold(box: Box, stem: str, run: list[tuple[int, Box]]) -> None:
    rest = [child for _, child in run[1:]]
    label = f"{stem}{run[1][0]}–{run[-1][0]}"
    stack = Box(f"{box.path}.{label}" if box.path else label, label, list(rest), stack=True)
    inside = set(map(id, rest))
    at = next(i for i, child in enumerate(box.children) if id(child) in inside)
    box.children[at] = stack
    box.children = [child for child in box.children if id(child) not in inside]


def _connect(root: Box, versions: Sequence[OpVersion], state: Sequence[int]) -> None:
    """Find the ports and edges of every box."""
    place: dict[int, tuple[tuple[Box, Slot], ...]] = {}

    def visit(box: Box, around: tuple[tuple[Box, Slot], ...]) -> None:
        for slot, child in enumerate(box.children):
            here = (*around, (box, slot))
            if isinstance(child, Box):
                visit(child, here)
            else:
                place[child] = here

    visit(root, ())
    makers = {name: index for index in state for name in versions[index].outs}
    wires: dict[int, _Wires] = {}

    def wires_of(box: Box) -> _Wires:
        return wires.setdefault(id(box), _Wires(box))

    for index in state:
        target = place[index]
        for _, name in versions[index].ins:
            if name not in makers:
                continue
            source = place[makers[name]]
            shared = 0
            while source[shared][1] == target[shared][1]:
                shared += 1
            wires_of(source[shared][0]).join(source[shared][1], target[shared][1])
            for box, slot in source[shared + 1 :]:
                wires_of(box).leave(slot, name)
            for box, slot in target[shared + 1 :]:
                wires_of(box).enter(name, slot)
    for each in wires.values():
        each.finish()


class _Wires:
    """Collects the edges of one box, and the slots that each value joins on its way in or out."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self._inner: dict[tuple[Slot, Slot], None] = {}
        self._ins: dict[str, dict[Slot, None]] = {}
        self._outs: dict[str, dict[Slot, None]] = {}

    def join(self, source: Slot, target: Slot) -> None:
        self._inner[source, target] = None

    def enter(self, name: str, target: Slot) -> None:
        self._ins.setdefault(name, {})[target] = None

    def leave(self, source: Slot, name: str) -> None:
        self._outs.setdefault(name, {})[source] = None

    def finish(self) -> None:
        box = self.box
        ins, outs = _ports(self._ins), _ports(self._outs)
        box.ins, box.outs = list(ins), list(outs)
        edges = dict(self._inner)
        slot = len(box.children)
        for inside in ins.values():
            edges.update({(slot, target): None for target in self._shown(inside)})
            slot += 1
        for inside in outs.values():
            edges.update({(source, slot): None for source in self._shown(inside)})
            slot += 1
        box.edges = list(edges)

    def _shown(self, inside: tuple[Slot, ...]) -> tuple[Slot, ...]:
        # What every layer of a stack reads would be an edge to each of them, and says nothing.
        return inside[:1] if self.box.stack else inside


def _ports(values: Mapping[str, Mapping[Slot, None]]) -> dict[Port, tuple[Slot, ...]]:
    """The ports for `values`, with the slots that each port joins: one for each value, or fewer if they are many."""
    if len(values) <= MAX_PORTS:
        return {(name,): tuple(slots) for name, slots in values.items()}
    alike: dict[tuple[Slot, ...], list[str]] = {}
    for name, slots in values.items():
        alike.setdefault(tuple(slots), []).append(name)
    if len(alike) > MAX_PORTS:
        alike = {tuple(dict.fromkeys([slot for slots in alike for slot in slots])): list(values)}
    return {tuple(names): slots for slots, names in alike.items()}


def looks(box: Box, versions: Sequence[OpVersion]) -> Mapping[int, int]:
    """A number for the look of every box, by `id(box)`: the same for boxes that differ in nothing but the names of
    their values and weights, and the number in their own name."""
    found: dict[int, int] = {}
    shapes: dict[object, int] = {}

    def look(each: Box) -> int:
        children = tuple(
            [look(child) if isinstance(child, Box) else _op_look(versions[child]) for child in each.children]
        )
        label = _NUMBERED.sub(r"\1", each.label)
        key = (label, children, len(each.ins), len(each.outs), tuple(each.edges))
        found[id(each)] = shapes.setdefault(key, len(shapes))
        return shapes[key]

    look(box)
    return found


def _op_look(version: OpVersion) -> object:
    return version.opname, version.types, version.attributes, len(version.weights)
