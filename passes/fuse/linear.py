"""Linear layers: matmul with a transposed weight, and the bias added behind it."""

from __future__ import annotations

from irlab.ir import Value, Weight
from irlab.ops import nn
from irlab.pattern import Pattern, Variable, p
from irlab.rewrite import Match, Rule
from irlab.types import tensor


class FuseLinear(Rule):
    """x @ transpose(w)  ->  nn.linear(x, w) for a weight matrix w."""

    def pattern(self, x: Variable, w: Variable) -> Pattern:
        return p.matmul(x, p.shared(p.transpose(w, perm=[1, 0])))

    def where(self, m: Match) -> bool | str:
        if not isinstance(m.w.op, Weight):
            return "the matrix is computed, not a weight"
        return m.w.type.rank == 2 or "the weight is no matrix"

    def rewrite(self, m: Match) -> Value:
        return nn.linear(m.x, m.w)


class FuseBias(Rule):
    """linear(x, w) + b  ->  nn.linear(x, w, b)."""

    def pattern(self, x: Variable, w: Variable, b: Variable) -> Pattern:
        return p.linear(x, w) + b

    def where(self, m: Match) -> bool | str:
        out = m.root.result.type
        expected = tensor(out.dtype, m.w.type.shape[:1])
        return m.b.type is expected or f"what is added is {m.b.type}, not a bias {expected}"

    def rewrite(self, m: Match) -> Value:
        return nn.linear(m.x, m.w, m.b)
