"""Which axes of which weights move together? Every indivisible axis of a graph, with its places in weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Final

import numpy as np
import numpy.typing as npt

from ..dims import Dim
from ..errors import IRError
from ..ir import Graph, Op, Return, Value, Weight
from ..ops import nn, prim
from ..ops.nn import NNOp
from ..weight_uses import operand_name
from . import rules
from .axis import Axis, fix, leaves
from .rules import Axes, fresh, keep_sizes, rule_of

Positions = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Place:
    """Axis `axis` of the weight `weight` is, or is made of, a group's axis. `reads` says that products sum over it."""

    weight: str
    axis: int
    reads: bool

    def __str__(self) -> str:
        return f"{self.weight}:{self.axis}"


class Group:
    """Indices that move together: an indivisible axis and every place of a weight that has it.

    `name` is unique in the graph, and stays while weights keep their names. `fixed` gives the reasons why the size
    cannot change, `mixed` those why indices depend on each other; `marks` is what ops make of the axis (see rules.py).
    """

    def __init__(self, leaf: Axis, places: Sequence[Place]) -> None:
        self.leaf, self.places = leaf, tuple(places)
        assert isinstance(leaf.size, int)
        self.size: int = leaf.size
        self.fixed, self.mixed, self.marks = tuple(leaf.fixed), tuple(leaf.mixed), frozenset(leaf.marks)
        self.name = ""

    @cached_property
    def role(self) -> str:
        """What the axis is, in a word or three."""
        return next((role for role, holds in _ROLES.items() if holds(self)), "width")

    @property
    def readers(self) -> tuple[Place, ...]:
        """The places where products sum over the axis."""
        return tuple(place for place in self.places if place.reads)

    @property
    def is_read_and_written(self) -> bool:
        """Whether some matrix makes these numbers and another one sums over them."""
        return len({place.reads for place in self.places}) == 2

    def __repr__(self) -> str:
        return f"<Group {self.name}: {self.size}>"


_ROLES: Final[dict[str, Callable[[Group], bool]]] = {
    "ids": lambda group: rules.INDEXED in group.fixed,
    "kv heads": lambda group: rules.KV_HEADS in group.marks,
    "query heads": lambda group: rules.QUERY_HEADS in group.marks,
    "head features": lambda group: rules.HEAD_FEATURES in group.marks,
    "value features": lambda group: rules.VALUE_FEATURES in group.marks,
    "features": lambda group: bool(group.mixed),
    "channels": lambda group: rules.CONVOLVED in group.marks,
    "neurons": lambda group: rules.ACTIVATED in group.marks and group.is_read_and_written,
}
"""The first that holds is the role of a group."""


class AxisAnalysis:
    """The axes of all values and weights of a graph and its regions, as the ops equate them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._axes: dict[Value, Axes] = {}
        self._weights: dict[str, Axes] = {}
        self._places: dict[str, list[Place]] = {}
        self._walk(graph)
        for axis in {axis.find() for axes in (*self._axes.values(), *self._weights.values()) for axis in axes}:
            _hand_down(axis)

    def of(self, value: Value) -> Axes:
        """The axes of a value."""
        return tuple(axis.find() for axis in self._axes[value])

    def __contains__(self, value: Value) -> bool:
        return value in self._axes

    def moved(self, old: Value, new: Value) -> None:
        """Let `new` have the axes of `old`, which it replaces."""
        if old in self._axes:
            self._axes[new] = self._axes[old]

    def of_weight(self, name: str) -> Axes:
        """The axes of a weight."""
        return tuple(axis.find() for axis in self._weights[name])

    @cached_property
    def groups(self) -> dict[str, Group]:
        """Every indivisible axis of known size above 1 that some weight has, by name, in order of first use."""
        places: dict[Axis, dict[Place, None]] = {}
        for name, axes in self._weights.items():
            for i, axis in enumerate(axes):
                for leaf in leaves(axis):
                    if isinstance(leaf.size, int) and leaf.size > 1:
                        known = places.setdefault(leaf, {})
                        known.update(dict.fromkeys(p for p in self._places[name] if p.axis == i))
        groups = [Group(leaf, list(found)) for leaf, found in places.items()]
        taken: Counter[str] = Counter()
        for group in groups:
            name = f"{_common_path(group)}:{group.role.replace(' ', '-')}"
            taken[name] += 1
            group.name = name if taken[name] == 1 else f"{name}-{taken[name]}"
        return {group.name: group for group in groups}

    def group_of(self, axis: Axis) -> Group | None:
        """The group of an axis; None where it has several, or is in no weight."""
        return self._by_leaf.get(axis.find())

    @cached_property
    def _by_leaf(self) -> dict[Axis, Group]:
        return {group.leaf: group for group in self.groups.values()}

    def _walk(self, graph: Graph) -> None:
        for value in graph.inputs:
            if value not in self._axes:
                self._axes[value] = fresh(value.type.shape)
        if graph is self.graph:
            for value in graph.inputs:
                for axis in self._axes[value]:
                    if not isinstance(axis.size, Dim):
                        fix(axis, f"the input '{value.name}' has it")
        for op in graph.topo():
            for region in op.regions:
                self._walk(region)
            # What a region returns is the result of the op that holds it, no output.
            if graph is self.graph or not isinstance(op, Return):
                self._infer(op)

    def _infer(self, op: Op) -> None:
        if isinstance(op, Weight):
            name, shape = op.symbol.name, op.symbol.type.shape
            axes = self._weights.setdefault(name, fresh(shape))
            if tuple(axis.size for axis in axes) != shape:
                raise IRError(f"weight '{name}' is used with two shapes", op=op)
            self._axes[op.result] = axes
            known = self._places.setdefault(name, [])
            for user in op.result.uses:
                read = _read_axes(user, op.result)
                known += [Place(name, i, i in read) for i in range(len(shape))]
            return
        rule = rule_of(type(op))
        if rule is not None:
            made = rule(op, self._axes.__getitem__)
        elif isinstance(op, NNOp):
            made = self._by_decomposition(op)
        else:
            made = keep_sizes(op, self._axes.__getitem__)
        self._axes.update(zip(op.results, made))

    def _by_decomposition(self, op: NNOp) -> list[Axes]:
        """The axes of an op without a rule, by what it means."""
        try:
            values = op.decompose()
        except IRError:
            return keep_sizes(op, self._axes.__getitem__)
        results = values if isinstance(values, tuple) else (values,)
        for inner in _detached(results):
            self._infer(inner)
        return [self._axes[value] for value in results]


def _hand_down(axis: Axis) -> None:
    """Let parts know what was said of the whole."""
    for part in axis.parts:
        part = part.find()
        if any(not said.keys() <= of.keys() for said, of in zip(_said(axis), _said(part))):
            for said, of in zip(_said(axis), _said(part)):
                of |= said
        _hand_down(part)


def _said(axis: Axis) -> tuple[dict[str, None], ...]:
    return axis.fixed, axis.mixed, axis.marks


def _read_axes(user: Op, value: Value) -> set[int]:
    """The axes of the weight `value` that `user` sums over, or what reads it through a transposition or a cast."""
    if isinstance(user, prim.Transpose | prim.Cast):
        found = {axis for reader in user.result.uses for axis in _read_axes(reader, user.result)}
        return {user.perm[axis] for axis in found} if isinstance(user, prim.Transpose) else found
    found = set()
    for slot, operand in enumerate(user.operands):
        if operand is value:
            name = operand_name(user, slot)
            if (isinstance(user, NNOp) and name in user.matrices) or (isinstance(user, prim.Conv) and name == "weight"):
                found.add(1)
            elif isinstance(user, NNOp) and name in user.stacks:
                found.add(2)
            elif isinstance(user, prim.MatMul):
                found.add(value.type.rank - (1 if name == "x" else 2))
            elif isinstance(user, nn.Embedding):
                found.add(0)
    return found


def _detached(values: Sequence[Value]) -> Iterator[Op]:
    """The detached ops that `values` are made by, producers first."""
    done: set[Op] = set()
    stack = [value.op for value in values if value.op is not None and value.op.graph is None][::-1]
    while stack:
        op = stack[-1]
        missing = [
            v.op for v in op.operands if v is not None and v.op is not None and v.op.graph is None and v.op not in done
        ]
        if op in done or not missing:
            stack.pop()
            if op not in done:
                done.add(op)
                yield op
        else:
            stack += missing


def _common_path(group: Group) -> str:
    """The module path that the weights of a group share."""
    names = list(dict.fromkeys(place.weight for place in group.places))
    paths = [name.split(".") for name in names]
    if len(paths) == 1:
        return ".".join(paths[0][:-1]) or "model"
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths))
    return ".".join(parts[0] for parts in shared) or "model"


def positions(axis: Axis, kept: Mapping[Axis, Positions]) -> Positions:
    """The indices of `axis` that are left when of indivisible axes those in `kept` are; all sizes are known."""
    axis = axis.find()
    if axis.form == "whole":
        return kept[axis] if axis in kept else np.arange(_static(axis))
    parts = [part.find() for part in axis.parts]
    if axis.form == "product":
        found = np.zeros(1, np.intp)
        for part in parts:
            found = (found[:, None] * _static(part) + positions(part, kept)).reshape(-1)
        return found
    pieces, offset = [], 0
    for part in parts:
        pieces.append(positions(part, kept) + offset)
        offset += _static(part)
    return np.concatenate(pieces)


def _static(axis: Axis) -> int:
    assert isinstance(axis.size, int)
    return axis.size


def coordinates(axis: Axis, leaf: Axis) -> Positions:
    """For each index of `axis` the index of the indivisible axis `leaf` that it belongs to, -1 for none."""
    axis, leaf = axis.find(), leaf.find()
    if axis is leaf:
        return np.arange(_static(axis))
    if axis.form == "whole":
        return np.full(_static(axis), -1)
    parts = [coordinates(part, leaf) for part in axis.parts]
    if axis.form == "sum":
        return np.concatenate(parts)
    found = np.full(1, -1)
    for part in parts:
        # At most one factor has the leaf.
        found = np.maximum(found[:, None], part[None, :]).reshape(-1)
    return found
