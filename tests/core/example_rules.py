"""A rule that several tests look at."""

from __future__ import annotations

from irlab import Match, Rule, Value, nn, p


class FuseRMSNorm(Rule):
    """x * rsqrt(mean(x^2) + eps) * w  ->  nn.rms_norm"""

    def pattern(self, x, w, eps):
        xf = p.maybe(p.cast, x)
        n = xf * p.rsqrt(p.mean(xf**2, axes=[-1]) + p.const(eps))
        return p.maybe(p.cast, n) * w

    def where(self, m: Match) -> bool | str:
        return m.w.type.rank == 1 or "weight must be rank 1"

    def rewrite(self, m: Match) -> Value:
        return nn.rms_norm(m.x, m.w, eps=m.eps)
