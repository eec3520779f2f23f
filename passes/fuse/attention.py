"""Attention spelled out in primitives, and key/value heads repeated for grouped queries."""

from __future__ import annotations

from irlab.ir import Value
from irlab.ops import nn, prim
from irlab.pattern import Pattern, Variable, p
from irlab.rewrite import Match, Rule
from irlab.types import bool_


class FuseSoftmax(Rule):
    """exp(x - max(x)) / sum(exp(x - max(x)))  ->  nn.softmax(x)."""

    def pattern(self, x: Variable) -> Pattern:
        e = p.shared(p.exp(x - p.max(x, axes=[-1], keepdims=True)))
        return e / p.sum(e, axes=[-1], keepdims=True)

    def rewrite(self, m: Match) -> Value:
        return nn.softmax(m.x)


class FuseAttention(Rule):
    """softmax(q k^T * scale + mask) v  ->  nn.attention(q, k, v, mask) {causal=false}."""

    def pattern(
        self, q: Variable, k: Variable, v: Variable, mask: Variable, scale: Variable, divisor: Variable
    ) -> Pattern:
        scores = p.matmul(q, p.transpose(k, perm=[0, 1, 3, 2]))
        scaled = p.any_of(scores * p.const(scale), scores / p.const(divisor), scores)
        masked = p.any_of(scaled + mask, scaled)
        weights = p.maybe(p.cast, p.softmax(p.maybe(p.cast, masked)))
        return p.matmul(weights, v)

    def where(self, m: Match) -> bool | str:
        if not m.q.type.rank == m.k.type.rank == m.v.type.rank == 4:
            return "q, k and v are not [batch, heads, length, head_dim]"
        if m.q.type.shape[:2] != m.k.type.shape[:2]:
            return "q and k differ in batch or heads"
        if m.mask is not None and m.mask.type.dtype is bool_:
            return "a bool mask is not added"
        return True

    def rewrite(self, m: Match) -> Value:
        scale = m.scale if m.scale is not None else 1.0 / m.divisor if m.divisor is not None else 1.0
        return nn.attention(m.q, m.k, m.v, m.mask, causal=False, scale=scale)


class ShareKVHeads(Rule):
    """attention over k and v whose heads were repeated  ->  attention over the heads themselves (GQA)."""

    def pattern(self, q: Variable, k: Variable, v: Variable, mask: Variable, sinks: Variable) -> Pattern:
        return p.attention(
            q, p.reshape(p.expand(p.reshape(k))), p.reshape(p.expand(p.reshape(v))), p.optional(mask), p.optional(sinks)
        )

    def where(self, m: Match) -> bool | str:
        for operand, source in ((m.root.operands[1], m.k), (m.root.operands[2], m.v)):
            if not _repeats_heads(operand, source):
                return "the heads are not repeated side by side"
        return True

    def rewrite(self, m: Match) -> Value:
        return m.root.rebuild((m.q, m.k, m.v, m.mask, m.sinks)).result


def _repeats_heads(repeated: Value | None, source: Value) -> bool:
    """Whether `repeated` is source[batch, kv, length, width] with each head repeated n times in place."""
    assert repeated is not None
    flat = repeated.op
    assert isinstance(flat, prim.Reshape) and isinstance(flat.x.op, prim.Expand)
    wide, tall = flat.x.type.shape, flat.x.op.x.type.shape
    if source.type.rank != 4 or len(wide) != 5:
        return False
    batch, heads, length, width = source.type.shape
    return tall == (batch, heads, 1, length, width) and wide == (batch, heads, wide[2], length, width)
