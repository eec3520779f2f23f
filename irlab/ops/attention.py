"""Attention, the positions it turns by and the cache it reads."""

from __future__ import annotations

from .. import dims
from ..ir import Value, expression
from ..types import TensorType, bool_, f32, i64, tensor
from . import prim
from .activations import softmax
from .nn_op import NNOp, in_f32, like, swap_last, to_dtype_of
from .shapes import broadcast_shapes, require, require_float


class Rope(NNOp, opname="nn.rope"):
    """Rotary position embedding (Su et al. 2021) of x[batch, heads, seq, head_dim].

    Pair i of the first 2 * len(inv_freq) features turns by positions * inv_freq[i]; features beyond stay. Pairs are
    (i, i + n) as in GPT-NeoX, or (2i, 2i + 1) if `interleaved`. `positions` is i64[seq] or i64[batch, seq];
    `inv_freq` is f32[n]. The result is scaled by `scale` (the attention factor of YaRN and LongRoPE).
    """

    x: Value
    positions: Value
    inv_freq: Value
    interleaved: bool = False
    scale: float = 1.0

    def infer(self) -> TensorType:
        x, positions, n = self.x.type, self.positions.type, self.inv_freq.type
        require(self, x.rank == 4, "x must be [batch, heads, seq, head_dim]")
        require(
            self,
            positions.dtype is i64 and positions.shape[-1:] == x.shape[2:3],
            "positions must be i64[seq] or i64[batch, seq]",
        )
        require(self, positions.rank in (1, 2), "positions must be i64[seq] or i64[batch, seq]")
        require(self, n.rank == 1 and n.dtype is f32, "inv_freq must be an f32 vector")
        width, rotary = x.shape[-1], n.shape[0] * 2
        require(
            self, not isinstance(width, int) or not isinstance(rotary, int) or rotary <= width, "inv_freq is too long"
        )
        return tensor(require_float(self, self.x).dtype, x.shape)

    def decompose(self) -> Value:
        x, n = self.x, self.inv_freq.type.shape[0]
        positions = self.positions
        if positions.type.rank == 1:
            positions = prim.reshape(positions, (1, *positions.type.shape))
        b, s = positions.type.shape
        column = prim.reshape(prim.cast(positions, f32), (b, 1, s, 1))
        angles = prim.mul(column, prim.reshape(self.inv_freq, (1, 1, 1, n)))
        cos, sin = (to_dtype_of(prim.mul(f(angles), like(self.scale, angles)), x) for f in (prim.cos, prim.sin))
        width = x.type.shape[-1]
        rotated = x if width == n * 2 else prim.slice(x, -1, 0, n * 2)
        if self.interleaved:
            first, second = prim.slice(rotated, -1, 0, n * 2, 2), prim.slice(rotated, -1, 1, n * 2, 2)
        else:
            first, second = prim.slice(rotated, -1, 0, n), prim.slice(rotated, -1, n, n * 2)
        turned_first = prim.sub(prim.mul(first, cos), prim.mul(second, sin))
        turned_second = prim.add(prim.mul(second, cos), prim.mul(first, sin))
        if self.interleaved:
            pair = (*first.type.shape, 1)
            both = prim.concat((prim.reshape(turned_first, pair), prim.reshape(turned_second, pair)), -1)
            out = prim.reshape(both, rotated.type.shape)
        else:
            out = prim.concat((turned_first, turned_second), -1)
        return out if rotated is x else prim.concat((out, prim.slice(x, -1, n * 2, width)), -1)


class Attention(NNOp, opname="nn.attention"):
    """softmax(q k^T * scale + mask) v, with grouped key/value heads; the softmax is computed in f32.

    q: [batch, heads, seq, head_dim], k: [batch, kv_heads, total, head_dim], v: [batch, kv_heads, total, v_dim]; query
    head h reads kv head h // (heads / kv_heads). The queries are the last seq of the total positions. `causal` hides
    later positions, `window` > 0 those that lie `window` or more back. `mask` is bool (true = visible) or a float bias,
    broadcast to [batch, heads, seq, total]. `softcap` > 0 bends scores to softcap * tanh(score / softcap).
    `sinks`[heads] is one extra logit per head that takes probability and gives nothing.
    """

    q: Value
    k: Value
    v: Value
    mask: Value | None = None
    sinks: Value | None = None
    causal: bool = True
    scale: float = 1.0
    window: int = 0
    softcap: float = 0.0

    def infer(self) -> TensorType:
        q, k, v = self.q.type, self.k.type, self.v.type
        require(self, q.rank == k.rank == v.rank == 4, "q, k and v must have four dimensions")
        require(self, q.dtype is k.dtype is v.dtype, "q, k and v differ in dtype")
        require(self, q.shape[0] == k.shape[0] == v.shape[0], "q, k and v differ in batch size")
        require(self, k.shape[1:3] == v.shape[1:3], "k and v differ in heads or length")
        require(self, q.shape[3] == k.shape[3], "q and k differ in head size")
        require(self, k.shape[1] != 0 and dims.mod(q.shape[1], k.shape[1]) == 0, "the kv heads must divide the heads")
        require(self, self.window >= 0 and self.softcap >= 0, "window and softcap are 0 or positive")
        if self.mask is not None:
            require(self, not self.mask.type.dtype.is_int, "the mask must be bool or a float bias")
            scores = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
            require(
                self, broadcast_shapes(self, self.mask.type.shape, scores) == scores, "the mask does not fit the scores"
            )
        if self.sinks is not None:
            sinks = require_float(self, self.sinks)
            require(self, sinks.shape == q.shape[1:2], "sinks must be one number per head")
        return tensor(require_float(self, self.q).dtype, (*q.shape[:3], v.shape[3]))

    def decompose(self) -> Value:
        batch, heads, seq, width = self.q.type.shape
        kv_heads, total = self.k.type.shape[1:3]
        groups = dims.floordiv(heads, kv_heads)
        # Query heads that share a kv head stand side by side as rows, so that k and v are never repeated.
        q = prim.reshape(self.q, (batch, kv_heads, groups * seq, width))
        scores = prim.reshape(in_f32(prim.matmul(q, swap_last(self.k))), (batch, heads, seq, total))
        scores = prim.mul(scores, like(self.scale, scores))
        if self.softcap:
            cap = like(self.softcap, scores)
            scores = prim.mul(prim.tanh(prim.div(scores, cap)), cap)
        hidden = like(float("-inf"), scores)
        visible = self._visible(seq, total)
        if visible is not None:
            scores = prim.where(visible, scores, hidden)
        if self.mask is not None:
            if self.mask.type.dtype is bool_:
                scores = prim.where(self.mask, scores, hidden)
            else:
                scores = prim.add(scores, in_f32(self.mask))
        if self.sinks is not None:
            column = prim.expand(prim.reshape(in_f32(self.sinks), (1, heads, 1, 1)), (batch, heads, seq, 1))
            scores = prim.slice(softmax(prim.concat((scores, column), -1)), -1, 0, total)
        else:
            scores = softmax(scores)
        weights = prim.reshape(to_dtype_of(scores, self.v), (batch, kv_heads, groups * seq, total))
        return prim.reshape(prim.matmul(weights, self.v), self.results[0].type.shape)

    def _visible(self, seq: dims.Size, total: dims.Size) -> Value | None:
        if not self.causal and not self.window:
            return None
        at = prim.reshape(prim.iota(seq, i64, total - seq), (seq, 1))
        key = prim.reshape(prim.iota(total, i64), (1, total))
        behind = prim.sub(at, key)
        visible = prim.ge(behind, prim.constant(0, i64)) if self.causal else None
        if self.window:
            near = prim.lt(behind, prim.constant(self.window, i64))
            visible = near if visible is None else prim.and_(visible, near)
        return visible


class KVUpdate(NNOp, opname="nn.kv_update"):
    """The cache with `new` in it: cache[batch, kv_heads, past, head_dim], new[batch, kv_heads, seq, head_dim].

    Without `pos` the cache grows: new comes after it, and the result has past + seq positions. With `pos` (i64, rank 0)
    the cache is a buffer of fixed length, and new overwrites the positions from pos on.
    """

    cache: Value
    new: Value
    pos: Value | None = None

    def infer(self) -> TensorType:
        cache, new = self.cache.type, self.new.type
        require(
            self, cache.rank == new.rank == 4 and cache.dtype is new.dtype, "cache and new must be alike, of rank 4"
        )
        require(
            self,
            cache.shape[:2] + cache.shape[3:] == new.shape[:2] + new.shape[3:],
            "cache and new differ off the length",
        )
        if self.pos is not None:
            require(self, self.pos.type is tensor(i64, ()), "pos must be an i64 of rank 0")
            return cache
        return tensor(cache.dtype, (*cache.shape[:2], cache.shape[2] + new.shape[2], cache.shape[3]))

    def decompose(self) -> Value:
        if self.pos is None:
            return prim.concat((self.cache, self.new), -2)
        seq = self.new.type.shape[2]
        rows = prim.reshape(prim.add(prim.iota(seq, i64), self.pos), (1, 1, seq, 1))
        return prim.scatter(self.cache, prim.expand(rows, self.new.type.shape), self.new, -2)


rope, attention, kv_update = expression(Rope), expression(Attention), expression(KVUpdate)
