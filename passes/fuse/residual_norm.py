"""The fuse-residual-norm pass: a residual addition and the norm behind it as one op."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irlab.ir import Value
from irlab.ops import nn
from irlab.passmgr import RulePass
from irlab.pattern import Pattern, Variable, p
from irlab.rewrite import Match, Rule


class FuseAddRMSNorm(Rule):
    """s = x + r; nn.rms_norm(s, w)  ->  nn.add_rms_norm(x, r, w), which gives s and the norm."""

    def pattern(self, x: Variable, r: Variable, w: Variable, eps: Variable) -> tuple[Pattern, Pattern]:
        total = p.shared(x + r)
        return p.rms_norm(total, w, eps=eps), total

    def where(self, m: Match) -> bool | str:
        return m.x.type is m.r.type or "the operands broadcast"

    def rewrite(self, m: Match) -> tuple[Value, Value]:
        total, normed = nn.add_rms_norm(m.x, m.r, m.w, eps=m.eps)
        return normed, total


@dataclass(frozen=True)
class FuseResidualNorm(RulePass, name="fuse-residual-norm", requires={"fuse": "it looks for nn.rms_norm"}):
    """Joins a residual addition with the rms_norm behind it, for targets with one kernel for both.

    Not part of fuse: on ONNX Runtime's CPU provider the joined kernel is slower than the two ops.
    """

    def rules(self) -> Sequence[Rule]:
        return (FuseAddRMSNorm(),)
