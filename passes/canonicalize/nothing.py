"""What changes nothing. Frontends leave these behind; every pattern would have to look through them."""

from __future__ import annotations

from typing import Any, Final, cast

from irlab import Match, Rule, Value, p, prim
from irlab.pattern import Pattern


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
