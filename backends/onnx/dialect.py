"""Which ops does a legalised module hold beyond the IR's own? Those of ONNX that do several things at once.

Like every nn op they decompose into what they mean, so that the interpreter runs a legalised module and the parity gate
measures the runtime alone. `flat` tensors are [batch, seq, heads * head_dim], the layout that ONNX's attention takes
without transposes.
"""

from __future__ import annotations

from irlab.dims import Size, floordiv
from irlab.ir import Value, expression, expressions
from irlab.ops import nn, prim
from irlab.ops.nn import NNOp
from irlab.ops.shapes import require, require_float
from irlab.types import TensorType, i64, tensor


def split_heads(x: Value, heads: Size) -> Value:
    """flat[batch, seq, heads * head_dim] -> [batch, heads, seq, head_dim]."""
    batch, seq, width = x.type.shape
    return prim.transpose(prim.reshape(x, (batch, seq, heads, floordiv(width, heads))), (0, 2, 1, 3))


def join_heads(x: Value) -> Value:
    """[batch, heads, seq, head_dim] -> flat[batch, seq, heads * head_dim]."""
    batch, heads, seq, width = x.type.shape
    return prim.reshape(prim.transpose(x, (0, 2, 1, 3)), (batch, seq, heads * width))


class FlatRope(NNOp, opname="onnx.rope"):
    """ONNX RotaryEmbedding: x flat, turned by angles whose cos and sin are [batch, seq, n], in the dtype of x.

    Pairs of the first 2 * n features of each head turn, (i, i + n) or (2i, 2i + 1) if `interleaved`.
    """

    x: Value
    cos: Value
    sin: Value
    heads: int
    interleaved: bool = False

    def infer(self) -> TensorType:
        x = require_float(self, self.x)
        require(self, x.rank == 3 and x.shape[2] % self.heads == 0, "x must be [batch, seq, heads * head_dim]")
        require(self, self.cos.type is self.sin.type, "cos and sin differ in type")
        require(
            self,
            self.cos.type.dtype is x.dtype and self.cos.type.shape[:2] == x.shape[:2],
            "cos must be [batch, seq, n]",
        )
        return x

    def decompose(self) -> Value:
        batch, seq, width = self.x.type.shape
        size, n = floordiv(width, self.heads), self.cos.type.shape[2]
        x = prim.reshape(self.x, (batch, seq, self.heads, size))
        cos, sin = (prim.reshape(t, (batch, seq, 1, n)) for t in (self.cos, self.sin))
        turned = prim.slice(x, -1, 0, n * 2)
        if self.interleaved:
            first, second = (prim.slice(turned, -1, start, n * 2, 2) for start in (0, 1))
        else:
            first, second = prim.slice(turned, -1, 0, n), prim.slice(turned, -1, n, n * 2)
        halves = [
            prim.sub(prim.mul(first, cos), prim.mul(second, sin)),
            prim.add(prim.mul(second, cos), prim.mul(first, sin)),
        ]
        if self.interleaved:
            pairs = prim.concat(tuple(prim.reshape(h, (*h.type.shape, 1)) for h in halves), -1)
            halves = [prim.reshape(pairs, turned.type.shape)]
        return prim.reshape(prim.concat((*halves, prim.slice(x, -1, n * 2, size)), -1), self.x.type.shape)


class FlatAttention(NNOp, opname="onnx.attention"):
    """ONNX Attention without a cache: q, k, v flat; the mask, if any, is [batch or 1, heads or 1, seq, total].

    `causal` needs as many keys as queries, because ONNX aligns its triangle to the first of both.
    """

    q: Value
    k: Value
    v: Value
    mask: Value | None
    heads: int
    kv_heads: int
    scale: float
    causal: bool = False
    softcap: float = 0.0

    def infer(self) -> TensorType:
        batch, seq, _ = self.q.type.shape
        require(self, not self.causal or self.k.type.shape[1] == seq, "causal attention needs equal lengths")
        width = floordiv(self.v.type.shape[2], self.kv_heads)
        return tensor(require_float(self, self.q).dtype, (batch, seq, self.heads * width))

    def decompose(self) -> Value:
        q, k, v = (
            split_heads(self.q, self.heads),
            split_heads(self.k, self.kv_heads),
            split_heads(self.v, self.kv_heads),
        )
        y = nn.attention(q, k, v, self.mask, causal=self.causal, scale=self.scale, softcap=self.softcap)
        return join_heads(y)


class CachedAttention(NNOp, opname="onnx.cached_attention"):
    """ONNX Attention with past keys and values: q, k, v flat, caches [batch, kv_heads, past, head_dim].

    Gives y flat and both caches with k and v appended. `causal` hides later positions; the past is earlier.
    """

    q: Value
    k: Value
    v: Value
    past_k: Value
    past_v: Value
    mask: Value | None
    heads: int
    kv_heads: int
    scale: float
    causal: bool = True
    softcap: float = 0.0

    def infer(self) -> tuple[TensorType, TensorType, TensorType]:
        batch, seq, _ = self.q.type.shape
        return _cached_types(self, batch, seq, self.heads, self.past_k, self.past_v)

    def decompose(self) -> tuple[Value, Value, Value]:
        q, k, v = (
            split_heads(self.q, self.heads),
            split_heads(self.k, self.kv_heads),
            split_heads(self.v, self.kv_heads),
        )
        keys, values = nn.kv_update(self.past_k, k), nn.kv_update(self.past_v, v)
        y = nn.attention(q, keys, values, self.mask, causal=self.causal, scale=self.scale, softcap=self.softcap)
        return join_heads(y), keys, values


class GroupQueryAttention(NNOp, opname="onnx.group_query_attention"):
    """com.microsoft GroupQueryAttention: rotary embedding, cache update and causal attention in one.

    `qkv` is flat q, k and v side by side, or q alone with `k` and `v` beside it. A query sees the positions up to its
    own among the first sum(attention_mask[b]) of row b: padding comes *last* in a row. `inv_freq`: f32[n], if given,
    turns q and k by `positions`: i64[batch, seq], below `max_length`. `sinks`: one extra logit per head. `k_scale` and
    `v_scale`, if given, are those of caches that hold codes of `cache_bits` (see nn.quantize_cache).
    """

    qkv: Value
    k: Value | None
    v: Value | None
    past_k: Value
    past_v: Value
    attention_mask: Value
    positions: Value | None
    inv_freq: Value | None
    sinks: Value | None
    k_scale: Value | None
    v_scale: Value | None
    heads: int
    kv_heads: int
    scale: float
    softcap: float = 0.0
    window: int = 0
    interleaved: bool = False
    rope_scale: float = 1.0
    max_length: int = 0
    cache_bits: int = 0

    def infer(self) -> tuple[TensorType, TensorType, TensorType]:
        batch, seq, _ = self.qkv.type.shape
        scaled = (self.k_scale is not None, self.v_scale is not None)
        require(self, scaled == (bool(self.cache_bits),) * 2, "codes of some bits come with both scales")
        require(self, (self.k is None) == (self.v is None), "k and v come together")
        require(self, (self.positions is None) == (self.inv_freq is None), "positions and inv_freq come together")
        require(self, self.attention_mask.type.dtype is i64, "attention_mask must be i64[batch, total]")
        y, present_k, present_v = _cached_types(self, batch, seq, self.heads, self.past_k, self.past_v)
        if self.cache_bits:
            y = tensor(self.qkv.type.dtype, (*y.shape[:2], y.shape[2] * (8 // self.cache_bits)))
        return y, present_k, present_v

    def decompose(self) -> tuple[Value, Value, Value]:
        flat = (self.qkv, self.k, self.v)
        if self.k is None:
            width = floordiv(self.qkv.type.shape[2], self.heads + 2 * self.kv_heads)
            sizes = (self.heads * width, self.kv_heads * width, self.kv_heads * width)
            flat = prim.split(self.qkv, sizes, -1)  # type: ignore[assignment]
        assert flat[1] is not None and flat[2] is not None
        q, k, v = (split_heads(x, n) for x, n in zip(flat, (self.heads, self.kv_heads, self.kv_heads)) if x is not None)
        if self.positions is not None and self.inv_freq is not None:
            q, k = (nn.rope(x, self.positions, self.inv_freq, self.interleaved, self.rope_scale) for x in (q, k))
        keys, read_keys = self._updated(self.past_k, k, self.k_scale)
        values, read_values = self._updated(self.past_v, v, self.v_scale)
        batch, total = self.attention_mask.type.shape
        length = prim.reshape(prim.sum(self.attention_mask, (-1,)), (batch, 1, 1, 1))
        mask = prim.lt(prim.reshape(prim.iota(total, i64), (1, 1, 1, total)), length)
        y = nn.attention(
            q, read_keys, read_values, mask, self.sinks, scale=self.scale, window=self.window, softcap=self.softcap
        )
        return join_heads(y), keys, values

    def _updated(self, past: Value, new: Value, scale: Value | None) -> tuple[Value, Value]:
        """The cache with `new` in it, and what it stands for."""
        if scale is None:
            cache = nn.kv_update(past, new)
            return cache, cache
        cache = nn.kv_update(past, nn.quantize_cache(new, scale, self.cache_bits))
        return cache, nn.dequantize_cache(cache, scale, new.type.dtype, self.cache_bits)


class HybridLinear(NNOp, opname="onnx.hybrid_linear"):
    """A linear with two encodings of one weight: `prompt` for several positions, `token` for one.

    x: [..., seq, in]; both weights [out, in]. The runtime rounds activations to 8 bits for `prompt`.
    """

    matrices = ("prompt", "token")

    x: Value
    prompt: Value
    token: Value
    bias: Value | None = None

    def infer(self) -> TensorType:
        require(self, self.prompt.type.shape == self.token.type.shape, "the two weights differ in shape")
        require(self, self.x.type.rank >= 2 and self.x.type.shape[-1] == self.token.type.shape[1], "x does not fit")
        return tensor(require_float(self, self.x).dtype, (*self.x.type.shape[:-1], self.token.type.shape[0]))

    def decompose(self) -> Value:
        several = prim.gt(prim.dim(self.x, -2), prim.constant(1, i64))
        prompt, token = (nn.linear(self.x, w, self.bias) for w in (self.prompt, self.token))
        return prim.where(several, prompt, token)


def _cached_types(
    op: NNOp, batch: Size, seq: Size, heads: int, past_k: Value, past_v: Value
) -> tuple[TensorType, TensorType, TensorType]:
    """The types of y and of both caches after them."""
    require(op, past_k.type.rank == past_v.type.rank == 4, "caches must be [batch, kv_heads, past, head_dim]")
    grown = [t.with_shape((*t.shape[:2], t.shape[2] + seq, t.shape[3])) for t in (past_k.type, past_v.type)]
    return tensor(past_k.type.dtype, (batch, seq, heads * past_v.type.shape[3])), grown[0], grown[1]


flat_rope, flat_attention = expression(FlatRope), expression(FlatAttention)
cached_attention, group_query_attention = expressions(CachedAttention), expressions(GroupQueryAttention)
hybrid_linear = expression(HybridLinear)
