"""Arithmetic with what leaves the other side as it is.

Only where the constant does not broadcast x. (x * 0 is not among them: it is nan where x is infinite.)
"""

from __future__ import annotations

from typing import Any, Final, cast

from irlab import Match, Rule, Value, p, prim
from irlab.passes.canonicalize.nothing import Nothing
from irlab.pattern import Pattern


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
