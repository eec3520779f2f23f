"""One order for operands that may stand in two: a constant on the right.

Text reads better, and equal expressions become equal ops, which cse merges.
"""

from __future__ import annotations

from typing import Any, Final

from irlab import Match, Op, Rule, Value, p, prim
from irlab.pattern import Pattern


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
