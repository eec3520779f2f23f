"""Attention spelled out in primitives, and key/value heads repeated or grouped for grouped queries."""

from __future__ import annotations

from typing import ClassVar

from irlab import dims
from irlab.ir import Value
from irlab.ops import nn, prim
from irlab.pattern import OpConstructor, Pattern, Variable, p
from irlab.rewrite import Match, Rule
from irlab.types import bool_

_MINUS_INFINITY = float("-inf")


class FuseSoftmax(Rule):
    """exp(x - max(x)) / sum(exp(x - max(x)))  ->  nn.softmax(x).

    Also where a row in which all is -inf is kept from becoming NaN, as nn.softmax keeps it.
    """

    def pattern(self, x: Variable) -> Pattern:
        top = p.shared(p.max(x, axes=[-1], keepdims=True))
        guarded = p.where(p.eq(top, p.const(_MINUS_INFINITY)), p.const(0.0), top)
        e = p.shared(p.exp(x - p.any_of(guarded, top)))
        total = p.shared(p.sum(e, axes=[-1], keepdims=True))
        return e / p.any_of(p.where(p.eq(total, p.const(0.0)), p.const(1.0), total), total)

    def rewrite(self, m: Match) -> Value:
        return nn.softmax(m.x)


class AttentionRule(Rule):
    """softmax(q k^T * scale + mask) v: what its spellings share. Captures q, k, v, and where they are there the
    mask `hides` (bool, -inf where false) and the mask `mask` (added, or bool again)."""

    def where(self, m: Match) -> bool | str:
        if not m.q.type.rank == m.k.type.rank == m.v.type.rank == 4:
            return "q, k and v are not [batch, heads, length, head_dim]"
        return True

    def rewrite(self, m: Match) -> Value:
        mask = m.mask if m.hides is None else m.hides if m.mask is None else _both(m.hides, m.mask)
        return nn.attention(m.q, m.k, m.v, mask, causal=False, scale=self.scale(m), softcap=self.softcap(m))

    def scale(self, m: Match) -> float:
        """What the scores are multiplied by."""
        return 1.0

    def softcap(self, m: Match) -> float:
        """The bound of the scores, 0 where there is none."""
        return 0.0


def _both(hides: Value, mask: Value) -> Value:
    """One mask that does what the two do."""
    if mask.type.dtype is bool_:
        return prim.and_(hides, mask)
    return prim.where(hides, mask, prim.constant(_MINUS_INFINITY, mask.type.dtype))


def _masked(scores: Pattern, hides: Variable, mask: Variable) -> Pattern:
    """`scores` with -inf where `hides` is false, then `mask` in the same way or added."""
    seen = p.any_of(p.where(hides, scores, p.const(_MINUS_INFINITY)), scores)
    return p.any_of(seen + mask, p.where(mask, seen, p.const(_MINUS_INFINITY)), seen)


class FuseAttention(AttentionRule):
    """softmax(q k^T * scale + mask) v  ->  nn.attention(q, k, v, mask) {causal=false}."""

    def pattern(
        self, q: Variable, k: Variable, v: Variable, mask: Variable, hides: Variable, scale: Variable, divisor: Variable
    ) -> Pattern:
        scores = p.matmul(q, p.transpose(k, perm=[0, 1, 3, 2]))
        scaled = p.any_of(scores * p.const(scale), scores / p.const(divisor), scores)
        weights = p.maybe(p.cast, p.softmax(p.maybe(p.cast, _masked(scaled, hides, mask))))
        return p.matmul(weights, v)

    def where(self, m: Match) -> bool | str:
        if m.q.type.rank == m.k.type.rank == 4 and m.q.type.shape[:2] != m.k.type.shape[:2]:
            return "q and k differ in batch or heads"
        return super().where(m)

    def scale(self, m: Match) -> float:
        if m.scale is not None:
            return float(m.scale)
        return 1.0 if m.divisor is None else 1.0 / float(m.divisor)


class FuseGroupedAttention(AttentionRule):
    """The same, computed with the query heads that share a key/value head as rows below one another: the spelling of
    nn.attention's own decomposition."""

    def pattern(
        self, q: Variable, k: Variable, v: Variable, mask: Variable, hides: Variable, scale: Variable, cap: Variable
    ) -> Pattern:
        scores = p.reshape(p.maybe(p.cast, p.matmul(p.reshape(q), p.transpose(k, perm=[0, 1, 3, 2]))))
        scaled = scores * p.const(scale)
        capped = p.any_of(p.tanh(scaled / p.const(cap)) * p.const(cap), scaled)
        weights = p.reshape(p.maybe(p.cast, p.softmax(_masked(capped, hides, mask))))
        return p.reshape(p.matmul(weights, v))

    def where(self, m: Match) -> bool | str:
        fits = super().where(m)
        if fits is not True:
            return fits
        (batch, heads, seq, _), (_, kv_heads, _, width) = m.q.type.shape, m.v.type.shape
        rows = (batch, kv_heads, dims.floordiv(heads, kv_heads) * seq, width)
        (product,) = m.root.operands
        if product is None or product.type.shape != rows or m.root.result.type.shape != (batch, heads, seq, width):
            return "the query heads are not grouped by key/value heads"
        return True

    def scale(self, m: Match) -> float:
        return float(m.scale)

    def softcap(self, m: Match) -> float:
        return float(m.cap or 0.0)


class MaskRule(Rule):
    """A comparison of positions in the mask of nn.attention, which an attribute says better.

    `compare` sets query position - key position against a number `bound`; `rest` is what the mask hides beside.
    """

    compare: ClassVar[OpConstructor]
    unset: ClassVar[dict[str, object]]
    """The attribute, not given so far."""

    def pattern(
        self,
        q: Variable,
        k: Variable,
        v: Variable,
        sinks: Variable,
        rest: Variable,
        queries: Variable,
        keys: Variable,
        offset: Variable,
        bound: Variable,
    ) -> Pattern:
        at = p.reshape(p.iota(start=offset, step=1)).named(queries)
        behind = p.shared(at - p.reshape(p.iota(start=0, step=1)).named(keys))
        test = p.shared(type(self).compare(behind, p.const(bound)))
        mask = p.any_of(p.and_(test, rest), p.where(test, rest, p.const(_MINUS_INFINITY)), test)
        return p.attention(q, k, v, mask, p.optional(sinks), **self.unset)

    def where(self, m: Match) -> bool | str:
        (*_, seq, _), (*_, total, _) = (value.type.shape for value in m.root.operands[:2] if value is not None)
        if m.queries.type.shape[-2:] != (seq, 1) or m.keys.type.shape[-2:] != (1, total):
            return "the positions compared are not those of queries and keys"
        if m.offset != total - seq:
            return f"queries count from {m.offset}, not from {total - seq}"
        return True

    def rewrite(self, m: Match) -> Value:
        return m.root.rebuild((m.q, m.k, m.v, m.rest, m.sinks), **self.attributes(m)).result

    def attributes(self, m: Match) -> dict[str, object]:
        """The attribute as the mask says it."""
        return {}


class FuseCausalMask(MaskRule):
    """attention under query position - key position >= 0  ->  attention {causal=true}."""

    compare = p.ge
    unset = {"causal": False}

    def where(self, m: Match) -> bool | str:
        return super().where(m) if m.bound == 0 else f"hidden from {m.bound} on, not from 0"

    def attributes(self, m: Match) -> dict[str, object]:
        return {"causal": True}


class FuseWindowMask(MaskRule):
    """attention under query position - key position < window  ->  attention {window=...}."""

    compare = p.lt
    unset = {"window": 0}

    def where(self, m: Match) -> bool | str:
        return super().where(m) if m.bound > 0 else "a window of nothing"

    def attributes(self, m: Match) -> dict[str, object]:
        return {"window": int(m.bound)}


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
