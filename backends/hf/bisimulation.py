"""Do two graphs compute the same function of equally named weights? Compared op by op, from the outputs down.

Operands are compared before the ops that read them, so the difference that is reported is the first one in the order of
computation. Sharing does not count: one op on one side may stand for several equal ones on the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final, TypeAlias

import numpy as np

from irlab.ir import Graph, Op, Value, Weight
from irlab.types import TensorType
from irlab.weights import File, Recipe, Slice, WeightSymbol, as_f32

_CLOSE: Final = 1e-6
"""Relative: attributes that went through f32 differ by less, anything that is meant differs by more."""

_CLOSE_BUFFERS: Final = 3e-7
"""Relative, for computed buffers such as rotary frequencies: a few units in the last place of f32."""

Operand: TypeAlias = "Value | None"


@dataclass(frozen=True)
class Difference:
    """Where two graphs part: an op of the first (None: its inputs or outputs), what it has, what the other has."""

    op: Op | None
    found: str
    expected: str

    @property
    def place(self) -> str:
        """The op and where it came from, in words."""
        if self.op is None:
            return "the graph"
        path = self.op.loc.path if self.op.loc is not None else ""
        return f"{self.op.opname} at {path}" if path else self.op.opname


@dataclass
class Comparison:
    """`weights` maps each weight of the reference that comes from a checkpoint to the one in its place."""

    weights: dict[str, WeightSymbol] = field(default_factory=dict)
    difference: Difference | None = None


def compare(graph: Graph, reference: Graph) -> Comparison:
    """Pair `graph` with `reference`. Names of weights, locations and dead ops do not matter; inputs and outputs are
    paired by name. Weights of the reference that lie in no file (rotary frequencies) must have equal numbers."""
    comparison = Comparison()
    comparison.difference = _interfaces(graph, reference) or _values(graph, reference, comparison)
    return comparison


def _interfaces(graph: Graph, reference: Graph) -> Difference | None:
    ours, theirs = ({f"%{v.name}": v.type for v in g.inputs} for g in (graph, reference))
    for what, mine, other in (("inputs", ours, theirs), ("outputs", graph.outputs, reference.outputs)):
        if mine.keys() != other.keys():
            return Difference(None, f"{what} {', '.join(sorted(mine))}", ", ".join(sorted(other)))
    for name, type in ours.items():
        if type is not theirs[name]:
            return Difference(None, f"input {name}: {type}", str(theirs[name]))
    return None


def _values(graph: Graph, reference: Graph, comparison: Comparison) -> Difference | None:
    wanted = reference.outputs
    stack: list[tuple[Op, Op, bool]] = []
    for name, value in graph.outputs.items():
        if _kind(value) != _kind(wanted[name]):
            return Difference(None, f"output {name} from {_kind(value)}", _kind(wanted[name]))
        stack.extend(_producers(value, wanted[name]))
    done: set[tuple[Op, Op]] = set()
    while stack:
        op, other, operands_done = stack.pop()
        if (op, other) in done:
            continue
        if not operands_done:
            stack.append((op, other, True))
            for _, mine, theirs in reversed(list(_operands(op, other))):
                stack.extend(_producers(mine, theirs))
            continue
        difference = _op_difference(op, other, comparison)
        if difference is not None:
            return difference
        done.add((op, other))
    return None


def _producers(value: Operand, expected: Operand) -> Iterator[tuple[Op, Op, bool]]:
    """What to compare below a pair of values, if they are of a kind."""
    if value is None or expected is None or _kind(value) != _kind(expected):
        return
    if value.op is not None and expected.op is not None:
        yield value.op, expected.op, False


def _kind(value: Operand) -> str:
    """What a value comes from, in words: equal for values that may be equal."""
    if value is None:
        return ""
    if value.op is None:
        return f"input %{value.name}"
    if len(value.op.results) == 1:
        return "a weight" if isinstance(value.op, Weight) else value.op.opname
    return f"result {value.op.results.index(value)} of {value.op.opname}"


def _operands(op: Op, other: Op) -> Iterator[tuple[str, Operand, Operand]]:
    """Operands with their names, in pairs; the two of a commutative op in whichever order they look alike."""
    mine, theirs = op.operands, other.operands
    if op.commutative and not all(map(_alike, mine, theirs)) and all(map(_alike, mine, theirs[::-1])):
        theirs = theirs[::-1]
    names = [*op.operand_names, *[f"{op.operand_names[-1]}[{i}]" for i in range(1, len(mine))]] if mine else []
    for name, value, expected in zip_longest(names[: max(len(mine), len(theirs))], mine, theirs):
        yield name or "operands", value, expected


def _alike(value: Operand, expected: Operand) -> bool:
    return _kind(value) == _kind(expected) and (value and value.type) is (expected and expected.type)


def _op_difference(op: Op, other: Op, comparison: Comparison) -> Difference | None:
    """The first difference between two ops of a kind, whose operands are equal as far as they are of a kind."""
    if isinstance(op, Weight) and isinstance(other, Weight):
        return _weight_difference(op, other, comparison)
    for name, value, expected in _operands(op, other):
        if _kind(value) != _kind(expected):
            found = f"no {name}" if value is None else f"{name} from {_kind(value)}"
            return Difference(op, found, f"no {name}" if expected is None else f"{name} from {_kind(expected)}")
    for name in op.attribute_names:
        mine, theirs = getattr(op, name), getattr(other, name)
        if not _same(mine, theirs):
            return Difference(op, f"{name}={_text(mine)}", f"{name}={_text(theirs)}")
    for region, expected_region in zip(op.regions, other.regions):
        inner = _interfaces(region, expected_region) or _values(region, expected_region, comparison)
        if inner is not None:
            return inner
    for result, expected in zip(op.results, other.results):
        if result.type is not expected.type:
            return Difference(op, f"type {result.type}", str(expected.type))
    return None


def _same(mine: object, theirs: object) -> bool:
    if isinstance(mine, float) and isinstance(theirs, float):
        return math.isclose(mine, theirs, rel_tol=_CLOSE) or (math.isnan(mine) and math.isnan(theirs))
    if isinstance(mine, tuple) and isinstance(theirs, tuple):
        return len(mine) == len(theirs) and all(map(_same, mine, theirs))
    return mine == theirs


def _text(attribute: object) -> str:
    return str(attribute) if isinstance(attribute, TensorType) else repr(attribute)


def _weight_difference(op: Weight, other: Weight, comparison: Comparison) -> Difference | None:
    symbol, expected = op.symbol, other.symbol
    if symbol.type is not expected.type:
        return Difference(op, f"'{symbol.name}': {symbol.type}", f"'{expected.name}': {expected.type}")
    if not _is_stored(expected.recipe):
        mine, theirs = as_f32(symbol.recipe.read()), as_f32(expected.recipe.read())
        if not np.allclose(mine, theirs, rtol=_CLOSE_BUFFERS, atol=0, equal_nan=True):
            at = tuple(int(i) for i in np.argwhere(~np.isclose(mine, theirs, rtol=_CLOSE_BUFFERS, atol=0))[0])
            found, wanted = (
                f"{a[at]:.8g} at {list(at)} of '{s.name}'" for a, s in ((mine, symbol), (theirs, expected))
            )
            return Difference(op, found, wanted)
        return None
    known = comparison.weights.setdefault(expected.name, symbol)
    if known.name != symbol.name:
        return Difference(op, f"two weights, '{known.name}' and '{symbol.name}'", f"one weight '{expected.name}'")
    return None


def _is_stored(recipe: Recipe) -> bool:
    """Whether numbers come from the checkpoint: a tensor of it, or a part of one, as gate and up of experts are."""
    return isinstance(recipe, File) or (isinstance(recipe, Slice) and isinstance(recipe.source, File))
