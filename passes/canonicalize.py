"""The canonicalize pass: one spelling for what can be spelled in several ways, so that other rules see fewer forms.

The rules stand in groups; each group says why it is there. Every one of them keeps the numbers exactly, and makes the
graph smaller or moves it toward the one spelling, so that they settle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from irlab import Match, Op, Rule, Value, p, prim
from irlab.dims import Dim
from irlab.passmgr import RulePass
from irlab.pattern import Pattern
from irlab.types import DType, bf16, f16, f32, f64, i64

# What changes nothing. Frontends leave these behind; every pattern would have to look through them.


class Nothing(Rule):
    """Base of rules for ops that give their operand `x` as it is."""

    def where(self, m: Match) -> bool | str:
        return m.x.type is m.root.result.type or "it changes the type"

    def rewrite(self, m: Match) -> Value:
        return cast(Value, m.x)


class SameCast(Nothing):
    """cast(x) to the dtype that x has -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.cast(x)


class SameReshape(Nothing):
    """reshape(x) to the shape that x has -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.reshape(x)


class SameExpand(Nothing):
    """expand(x) to the shape that x has -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.expand(x)


class SameTranspose(Nothing):
    """transpose(x) that moves no dimension -> x"""

    def pattern(self, x: Any, perm: Any) -> Pattern:
        return p.transpose(x, perm=perm)

    def where(self, m: Match) -> bool | str:
        return m.perm == tuple(range(m.x.type.rank)) or "it moves dimensions"


class WholeSlice(Nothing):
    """slice(x) of all of x -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.slice(x)


class NoPad(Nothing):
    """pad(x) by nothing -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.pad(x)


class ConcatOne(Nothing):
    """concat(x) -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.concat(x)


class SplitOne(Nothing):
    """split(x) into one piece -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.split(x)

    def where(self, m: Match) -> bool | str:
        return len(m.root.results) == 1 or "there are several pieces"


class ReduceNothing(Nothing):
    """sum, mean, max, min or prod of x over no axes, or over axes of size 1 that stay -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.any_of(p.sum(x), p.mean(x), p.max(x), p.min(x), p.prod(x))


class ConcatEmpty(Rule):
    """concat(x, y) where x is empty -> concat(y)"""

    def pattern(self, xs: Any, axis: Any) -> Pattern:
        return p.concat(*xs, axis=axis)

    def where(self, m: Match) -> bool | str:
        full = _not_empty(m)
        return 0 < len(full) < len(m.xs) or "no operand is empty"

    def rewrite(self, m: Match) -> Value:
        return prim.concat(_not_empty(m), m.axis)


def _not_empty(m: Match) -> tuple[Value, ...]:
    return tuple([x for x in m.xs if x.type.shape[m.axis] != 0])


NOTHING: Final = (
    SameCast,
    SameReshape,
    SameExpand,
    SameTranspose,
    WholeSlice,
    NoPad,
    ConcatOne,
    SplitOne,
    ReduceNothing,
    ConcatEmpty,
)

# Two of a kind in a row are one. What lies between may have other uses: it then stays for them.


class ReshapeReshape(Rule):
    """reshape(reshape(x)) -> reshape(x)"""

    def pattern(self, x: Any, shape: Any) -> Pattern:
        return p.reshape(p.shared(p.reshape(x)), shape=shape)

    def rewrite(self, m: Match) -> Value:
        return prim.reshape(m.x, m.shape)


class ExpandExpand(Rule):
    """expand(expand(x)) -> expand(x)"""

    def pattern(self, x: Any, shape: Any) -> Pattern:
        return p.expand(p.shared(p.expand(x)), shape=shape)

    def rewrite(self, m: Match) -> Value:
        return prim.expand(m.x, m.shape)


class TransposeTranspose(Rule):
    """transpose(transpose(x)) -> transpose(x) by both at once"""

    def pattern(self, x: Any, first: Any, second: Any) -> Pattern:
        return p.transpose(p.shared(p.transpose(x, perm=first)), perm=second)

    def rewrite(self, m: Match) -> Value:
        return prim.transpose(m.x, tuple([m.first[i] for i in m.second]))


class SliceSlice(Rule):
    """slice(slice(x)) along one axis by step 1 -> slice(x)"""

    def pattern(self, x: Any, axis: Any, offset: Any, start: Any, stop: Any) -> Pattern:
        inner = p.shared(p.slice(x, axis=axis, start=offset, step=1))
        return p.slice(inner, axis=axis, start=start, stop=stop, step=1)

    def rewrite(self, m: Match) -> Value:
        return prim.slice(m.x, m.axis, m.offset + m.start, m.offset + m.stop)


class CastCast(Rule):
    """cast(cast(x)) -> cast(x), where the inner cast loses nothing"""

    def pattern(self, x: Any, between: Any, dtype: Any) -> Pattern:
        return p.cast(p.shared(p.cast(x, dtype=between)), dtype=dtype)

    def where(self, m: Match) -> bool | str:
        if m.x.type.encoding is not None:
            return "x is encoded: the inner cast decodes it"
        return holds(m.between, m.x.type.dtype) or "the inner cast may lose something"

    def rewrite(self, m: Match) -> Value:
        return prim.cast(m.x, m.dtype)


_EXPONENT_AND_FRACTION: Final = {f16: (5, 10), bf16: (8, 7), f32: (8, 23), f64: (11, 52)}
"""Bits of exponent and fraction: a float holds another exactly if it has as many of both."""


def holds(wide: DType, narrow: DType) -> bool:
    """Whether every number of dtype `narrow` is one of dtype `wide`."""
    if wide is narrow:
        return True
    if wide in _EXPONENT_AND_FRACTION and narrow in _EXPONENT_AND_FRACTION:
        return all(w >= n for w, n in zip(_EXPONENT_AND_FRACTION[wide], _EXPONENT_AND_FRACTION[narrow]))
    # i8 fits i16, u8 fits i16 and u16; i8 does not fit u16.
    if wide.is_int and narrow.is_int:
        signs = (_is_signed(wide), _is_signed(narrow))
        return wide.bits > narrow.bits and signs != (False, True)
    return False


def _is_signed(dtype: DType) -> bool:
    return dtype.name.startswith("i")


class NegNeg(Rule):
    """-(-x) -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.neg(p.shared(p.neg(x)))

    def rewrite(self, m: Match) -> Value:
        return cast(Value, m.x)


class NotNot(Rule):
    """not(not(x)) -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.not_(p.shared(p.not_(x)))

    def rewrite(self, m: Match) -> Value:
        return cast(Value, m.x)


class AbsAbs(Rule):
    """abs(abs(x)), abs(-x) -> abs(x)"""

    def pattern(self, x: Any) -> Pattern:
        return p.abs(p.any_of(p.shared(p.abs(x)), p.shared(p.neg(x))))

    def rewrite(self, m: Match) -> Value:
        return prim.abs(m.x)


class ReluRelu(Rule):
    """relu(relu(x)) -> relu(x)"""

    def pattern(self, x: Any) -> Pattern:
        return p.relu(p.shared(p.relu(x)))

    def rewrite(self, m: Match) -> Value:
        return prim.relu(m.x)


PAIRS: Final = (
    ReshapeReshape,
    ExpandExpand,
    TransposeTranspose,
    SliceSlice,
    CastCast,
    NegNeg,
    NotNot,
    AbsAbs,
    ReluRelu,
)

# Arithmetic with a number that leaves the other side as it is. Only where the constant does not broadcast x. (x * 0 is
# not among them: it is nan where x is infinite.)


class Neutral(Nothing):
    """x + 0, x - 0, x * 1, x / 1, x ** 1 -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.any_of(x + 0, x - 0, x * 1, x / 1, x**1)


class NeutralLogic(Nothing):
    """x and true, x or false, x xor false -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.any_of(p.and_(x, True), p.or_(x, False), p.xor(x, False))

    def where(self, m: Match) -> bool | str:
        return super().where(m) if m.x.type.dtype.name == "bool" else "x is not bool"


class SameBoth(Nothing):
    """maximum(x, x), minimum(x, x), x and x, x or x -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.any_of(p.maximum(x, x), p.minimum(x, x), p.and_(x, x), p.or_(x, x))


class WhereSame(Nothing):
    """where(c, x, x) -> x"""

    def pattern(self, c: Any, x: Any) -> Pattern:
        return p.where(c, x, x)


class WhereKnown(Rule):
    """where(true, x, y) -> x; where(false, x, y) -> y"""

    def pattern(self, c: Any, x: Any, y: Any) -> Pattern:
        return p.where(p.const(c), x, y)

    def where(self, m: Match) -> bool | str:
        return (m.x if m.c else m.y).type is m.root.result.type or "the other side broadcasts it"

    def rewrite(self, m: Match) -> Value:
        return cast(Value, m.x if m.c else m.y)


class WhereNot(Rule):
    """where(not c, x, y) -> where(c, y, x)"""

    def pattern(self, c: Any, x: Any, y: Any) -> Pattern:
        return p.where(p.shared(p.not_(c)), x, y)

    def rewrite(self, m: Match) -> Value:
        return prim.where(m.c, m.y, m.x)


ALGEBRA: Final = (Neutral, NeutralLogic, SameBoth, WhereSame, WhereKnown, WhereNot)

# One order for operands that may stand in two: a constant on the right. Text reads better, and equal expressions become
# equal ops, which cse merges.


class ConstantRight(Rule, name="constant-right"):
    """add(2, x) -> add(x, 2), for every commutative op."""

    def __init__(self, cls: type[Op]) -> None:
        self.cls = cls

    def pattern(self, x: Any, c: Any) -> Pattern:
        return p.op(self.cls, x, p.const(c))

    def where(self, m: Match) -> bool | str:
        left, right = m.root.operands
        if left is None or not isinstance(left.op, prim.Constant):
            return "the constant is on the right"
        return (right is not None and not isinstance(right.op, prim.Constant)) or "both are constants"

    def rewrite(self, m: Match) -> Value:
        return m.root.rebuild(m.root.operands[::-1]).results[0]


COMMUTATIVE: Final[tuple[type[Op], ...]] = (
    prim.Add,
    prim.Mul,
    prim.Maximum,
    prim.Minimum,
    prim.Eq,
    prim.Ne,
    prim.And,
    prim.Or,
    prim.Xor,
)

# What the types already say.


class KnownDim(Rule):
    """dim(x) of a size that is known -> that number"""

    def pattern(self, x: Any, axis: Any) -> Pattern:
        return p.dim(x, axis=axis)

    def where(self, m: Match) -> bool | str:
        return not isinstance(m.x.type.shape[m.axis], Dim) or "the size is symbolic"

    def rewrite(self, m: Match) -> Value:
        return prim.constant(m.x.type.shape[m.axis], i64)


class ShortIota(Rule):
    """iota of one number -> that number"""

    def pattern(self, start: Any, dtype: Any) -> Pattern:
        return p.iota(size=1, start=start, dtype=dtype)

    def where(self, m: Match) -> bool | str:
        return not isinstance(m.start, Dim) or "it begins at a symbolic size"

    def rewrite(self, m: Match) -> Value:
        return prim.constant(m.start, m.dtype, (1,))


TYPES: Final = (KnownDim, ShortIota)


RULES: Final[tuple[Rule, ...]] = (
    *(rule() for rule in (*NOTHING, *PAIRS, *ALGEBRA, *TYPES)),
    *(ConstantRight(cls) for cls in COMMUTATIVE),
)
"""One instance each, so that patterns are compiled once."""


@dataclass(frozen=True)
class Canonicalize(RulePass, name="canonicalize"):
    """Brings ops into one form: no ops that do nothing, no two reshapes in a row, constants on the right.

        %1 = prim.reshape(%x) {shape=[4, 6]}
        %2 = prim.reshape(%1) {shape=[24]}        ->    %2 = prim.reshape(%x) {shape=[24]}
        %3 = prim.mul(1.0, %2)

    The rules, all exact, are listed in the file by the reason for them.
    """

    def rules(self) -> Sequence[Rule]:
        return RULES
