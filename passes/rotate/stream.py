"""Who writes and who reads the features of the residual stream, and of the values of a head? Told by the axes alone.

A rotation R of the features goes unnoticed if all that writes them is multiplied by it and all that reads them by its
transpose, and if what lies between acts on all features alike: sums, products with numbers, norms without a gain
(Ashkboos et al. 2024, SliceGPT and QuaRot). The gain of a norm goes into what reads the norm first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from irlab.axes import Axis, AxisAnalysis, leaves
from irlab.axes.axis import factors
from irlab.errors import InputError
from irlab.ir import Graph, Op, Value, Weight, place_of
from irlab.ops import nn, prim
from irlab.passes.rotate.folds import Folds, Projection, Turn

READS: Final[dict[type[Op], tuple[str, ...]]] = {
    nn.Linear: ("weight",),
    nn.LowRankLinear: ("a", "weight"),
    nn.GatedMLP: ("gate", "up"),
}
"""The operands whose axis 1 reads the features of x."""

WRITES: Final[dict[type[Op], dict[str, int]]] = {
    nn.Linear: {"weight": 0, "bias": 0},
    nn.LowRankLinear: {"b": 0, "weight": 0, "bias": 0},
    nn.GatedMLP: {"down": 0, "down_bias": 0},
    nn.Embedding: {"weight": 1},
}
"""The operands that make the features of the result, with the axis that does."""

MOVES: Final = (prim.Cast, prim.Reshape, prim.Transpose, prim.Expand, prim.Slice, prim.Concat)
"""Ops that leave the features of each position together."""


class Residual:
    """A walk over the ops that touch the features `axis`, which notes in `folds` what makes them turned everywhere.

    Raises InputError, naming the op, for one that does not act on all features alike.
    """

    def __init__(self, axes: AxisAnalysis, axis: Axis, folds: Folds, turn: Callable[[int], Turn | Projection]) -> None:
        self._axes, self._axis, self._folds, self._turn = axes, axis, folds, turn
        self._gain: dict[Value, str] = {}
        """The gain that a value lacks, now that its norm has none: its readers must take it in."""

    def follow(self, ops: Iterable[Op]) -> None:
        """Walk over `ops`, in order."""
        for op in ops:
            if isinstance(op, Weight):
                continue
            for value in (*op.operands, *op.results):
                if value is not None and not isinstance(value.op, Weight) and not self._is_last(value):
                    raise refusal(op, "they are not its last axis alone")
            if type(op) in READS or type(op) in WRITES:
                self._product(op)
            elif isinstance(op, nn.RMSNorm | nn.AddRMSNorm):
                self._norm(op)
            elif isinstance(op, prim.Add | prim.Sub):
                self._sum(op)
            elif isinstance(op, (prim.Mul, prim.Div, *MOVES)):
                self._alike(op)
            elif isinstance(op, nn.LayerNorm):
                raise refusal(op, "it subtracts the mean of the features, which a rotation mixes")
            else:
                raise refusal(op, "it works on single features")

    def _has(self, value: Value | None) -> bool:
        return value is not None and value in self._axes and any(self._axis in leaves(a) for a in self._axes.of(value))

    def _is_last(self, value: Value) -> bool:
        return not self._has(value) or (
            self._axes.of(value)[-1] is self._axis
            and not any(self._axis in leaves(axis) for axis in self._axes.of(value)[:-1])
        )

    def _product(self, op: Op) -> None:
        x = op.operands[0]
        if x is not None and self._has(x) and type(op) in READS:
            for name in READS[type(op)]:
                if getattr(op, name) is not None:
                    self._weight(op, name, 1)
                    if self._gain.get(x):
                        self._folds.gain(op, name, self._gain[x])
        if self._has(op.results[0]):
            for name, axis in WRITES[type(op)].items():
                if getattr(op, name) is not None:
                    self._weight(op, name, axis)

    def _weight(self, op: Op, name: str, axis: int) -> None:
        self._folds.turn(op, name, self._turn(axis))
        require_plain(op, name)

    def _norm(self, op: nn.RMSNorm | nn.AddRMSNorm) -> None:
        self._require_whole(op, (op.operands[0], op.residual if isinstance(op, nn.AddRMSNorm) else None))
        if op.weight is not None:
            weight = require_plain(op, "weight")
            self._gain[op.results[-1]] = weight.symbol.name
            self._folds.spend(op, "weight")

    def _sum(self, op: prim.Add | prim.Sub) -> None:
        if not all(map(self._has, op.operands)):
            raise refusal(op, "it adds the same number to all features")
        self._require_whole(op, op.operands)

    def _alike(self, op: Op) -> None:
        turned = [value for value in op.operands if value is not None and self._has(value)]
        gains = {self._gain.get(value, "") for value in turned}
        expected = len(op.operands) if isinstance(op, prim.Concat) else 1
        if len(turned) != expected or len(gains) > 1 or (isinstance(op, prim.Div) and turned[0] is not op.operands[0]):
            raise refusal(op, "it works on single features")
        self._gain[op.results[0]] = gains.pop()

    def _require_whole(self, op: Op, values: Sequence[Value | None]) -> None:
        for value in values:
            if value is not None and self._gain.get(value):
                raise refusal(op, f"the gain '{self._gain[value]}' of the norm before it has no matrix to go into")


def refusal(op: Op, why: str) -> InputError:
    """Says that `op` acts on single features."""
    return InputError(f"rotate: {place_of(op)} cannot follow a rotation of the features: {why}")


def require_plain(op: Op, name: str) -> Weight:
    """The weight that `op` reads as operand `name`. Raises InputError for a value that is computed, or encoded."""
    weight = getattr(op, name).op
    if not isinstance(weight, Weight):
        raise refusal(op, f"its {name} is computed")
    if weight.symbol.type.encoding is not None:
        raise InputError(f"rotate: the codes of weight '{weight.symbol.name}' are fixed already", "rotate first")
    return weight


def ops_by_axis(graph: Graph, axes: AxisAnalysis, wanted: Iterable[Axis]) -> dict[Axis, list[Op]]:
    """The ops of `graph`, in order, that touch each of the axes `wanted`."""
    found: dict[Axis, dict[Op, None]] = {axis: {} for axis in wanted}
    for op in graph.topo():
        for value in (*op.operands, *op.results):
            if value is not None and value in axes:
                for axis in axes.of(value):
                    for leaf in leaves(axis):
                        if leaf in found:
                            found[leaf][op] = None
    return {axis: list(ops) for axis, ops in found.items()}


def turn_values(ops: Sequence[Op], axes: AxisAnalysis, leaf: Axis, folds: Folds, turn: Callable[[int], Turn]) -> bool:
    """Note in `folds` what turns the values of each head, features `leaf`, between the matrix that makes them and the
    one that reads their mean; whether that is possible."""
    found: list[tuple[Op, str, int]] = []
    for op in ops:
        if isinstance(op, nn.Linear):
            for name, axis in (("weight", 0), ("weight", 1), ("bias", 0)):
                value = getattr(op, name)
                if value is not None and leaf in leaves(axes.of(value)[axis]):
                    parts = factors(axes.of(value)[axis])
                    if parts.count(leaf) != 1 or parts[-1] is not leaf or not isinstance(value.op, Weight):
                        return False
                    found.append((op, name, axis))
        elif isinstance(op, nn.Attention):
            if any(leaf in leaves(axis) for v in (op.q, op.k) for axis in axes.of(v)):
                return False
        elif not isinstance(op, (Weight, prim.Reshape, prim.Transpose, prim.Cast)):
            return False
    for op, name, axis in found:
        require_plain(op, name)
        folds.turn(op, name, turn(axis))
    return True
