"""The LLM-level ops under one name: `nn.RMSNorm` is the op class, `nn.rms_norm(x, w)` builds one and gives its value.

Each op has `decompose()`: an expression in primitives that *is* its meaning. The interpreter's fast kernels and every
fusion are checked against it. Attention tensors are [batch, heads, seq, head_dim], as in torch and ONNX.
"""

from __future__ import annotations

from typing import ClassVar

from .. import dims
from ..errors import IRError
from ..ir import Op, Value, expression, expressions
from ..types import DType, TensorType, bool_, f32, i8, i64, tensor, u8
from . import prim
from .shapes import broadcast_shapes, fail, require, require_float


class NNOp(Op):
    """An op of this dialect. `matrices` names the operands that are weight matrices [out, in] of a matrix product."""

    matrices: ClassVar[tuple[str, ...]] = ()

    def decompose(self) -> Value | tuple[Value, ...]:
        """The meaning of the op: a detached expression over its operands in simpler ops, one per result."""
        raise IRError(f"{self.opname} has no decomposition", op=self)


def _in_f32(x: Value) -> Value:
    return x if x.type.dtype is f32 else prim.cast(x, f32)


def _to_dtype_of(x: Value, like: Value) -> Value:
    return x if x.type.dtype is like.type.dtype else prim.cast(x, like.type.dtype)


def _like(number: float, x: Value) -> Value:
    return prim.constant(number, x.type.dtype)


def _swap_last(x: Value) -> Value:
    rank = x.type.rank
    return prim.transpose(x, (*range(rank - 2), rank - 1, rank - 2))


class Linear(NNOp, opname="nn.linear"):
    """x[..., in] @ weight[out, in]^T + bias[out]. An encoded weight is decoded to the dtype of x first."""

    matrices = ("weight",)

    x: Value
    weight: Value
    bias: Value | None = None

    def infer(self) -> TensorType:
        x, w = self.x.type, self.weight.type
        require(self, w.rank == 2, "the weight must be a matrix [out, in]")
        require(self, x.rank >= 1 and x.shape[-1] == w.shape[1], f"{x.shape[-1:]} features do not fit the weight")
        require(self, w.encoding is not None or w.dtype is x.dtype, "weight and x differ in dtype")
        if self.bias is not None:
            require(self, self.bias.type is tensor(x.dtype, w.shape[:1]), "the bias must be [out] in the dtype of x")
        return tensor(require_float(self, self.x).dtype, (*x.shape[:-1], w.shape[0]))

    def decompose(self) -> Value:
        w = decode(self.weight, self.x)
        product = prim.matmul(self.x, _swap_last(w)) if self.x.type.rank > 1 else None
        if product is None:
            row = prim.reshape(self.x, (1, *self.x.type.shape))
            product = prim.reshape(prim.matmul(row, _swap_last(w)), self.results[0].type.shape)
        return product if self.bias is None else prim.add(product, self.bias)


class LowRankLinear(NNOp, opname="nn.low_rank_linear"):
    """linear(linear(x, a), b) + linear(x, weight) + bias: two thin matrices, beside a whole one if there is one.

    a: [rank, in], b: [out, rank], named as in LoRA (Hu et al. 2021); weight: [out, in]; bias: [out]. Beside a weight
    the thin ones are its correction, and no `matrices` that a pass should make smaller.
    """

    x: Value
    a: Value
    b: Value
    weight: Value | None = None
    bias: Value | None = None

    @property
    def matrices(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("a", "b") if self.weight is None else ("weight",)

    def infer(self) -> TensorType:
        x, a, b = self.x.type, self.a.type, self.b.type
        require(self, a.rank == b.rank == 2 and a.shape[0] == b.shape[1], "a and b must be [rank, in] and [out, rank]")
        require(self, x.rank >= 1 and x.shape[-1] == a.shape[1], f"{x.shape[-1:]} features do not fit a")
        for w in (self.a, self.b, self.weight):
            require(self, w is None or w.type.encoding is not None or w.type.dtype is x.dtype, "weights and x differ")
        if self.weight is not None:
            require(self, self.weight.type.shape == (b.shape[0], a.shape[1]), "the weight must be [out, in]")
        if self.bias is not None:
            require(self, self.bias.type is tensor(x.dtype, b.shape[:1]), "the bias must be [out] in the dtype of x")
        return tensor(require_float(self, self.x).dtype, (*x.shape[:-1], b.shape[0]))

    def decompose(self) -> Value:
        thin = linear(self.x, self.a)
        if self.weight is None:
            return linear(thin, self.b, self.bias)
        return prim.add(linear(self.x, self.weight, self.bias), linear(thin, self.b))


class QuantizeActivation(NNOp, opname="nn.quantize_activation"):
    """x as integers of `bits` hold it: q = round(x / scale) + zero, cut to the integers, and (q - zero) * scale again.

    With `scale` > 0 the scale is known beforehand (static), and is that of all of x. Else (dynamic) it is found in x,
    the least that cuts nothing: for each row over the last axis (`per` "token"), or for all of x (`per` "tensor").
    `zero` is the integer that stands for 0; it lies in the middle by default, and near the lowest for what is hardly
    ever negative. With `dynamic_zero` it is found with the scale, so that the integers span x and 0: with 8 bits per
    tensor what ONNX's DynamicQuantizeLinear does. Integers are signed, halves go to even, a largest magnitude with
    `zero` 0 goes to 2^(bits-1) - 1. The scale is computed in f32, the result has the dtype of x.

    An nn.linear that reads the result, with codes of 8 bits under one scale a row, is a product of integers to those
    backends that multiply integers.
    """

    x: Value
    bits: int = 8
    per: str = "token"
    scale: float = 0.0
    zero: int = 0
    dynamic_zero: bool = False

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def infer(self) -> TensorType:
        x = require_float(self, self.x)
        require(self, x.rank >= 1, "x must have an axis")
        require(self, 2 <= self.bits <= 16, "bits must be from 2 to 16")
        require(self, self.per in ("token", "tensor"), 'per must be "token" or "tensor"')
        require(self, 0 <= self.scale < float("inf"), "the scale must be positive, or 0 where it is found in x")
        require(self, not self.scale or self.per == "tensor", 'a scale that is given is per "tensor"')
        require(self, self.lowest <= self.zero < self.highest, "the zero point is outside the integers")
        require(self, not self.dynamic_zero or not (self.scale or self.zero), "a zero point that is found is not given")
        return tensor(x.dtype, x.shape)

    def decompose(self) -> Value:
        xf = _in_f32(self.x)
        scale, zero = self.scale_and_zero(xf)
        steps = prim.round(prim.div(xf, scale))
        steps = steps if zero is None else prim.add(steps, zero)
        steps = prim.minimum(prim.maximum(steps, _like(float(self.lowest), xf)), _like(float(self.highest), xf))
        steps = steps if zero is None else prim.sub(steps, zero)
        return _to_dtype_of(prim.mul(steps, scale), self.x)

    def scale_and_zero(self, xf: Value) -> tuple[Value, Value | None]:
        """The scale and the zero point, None where that is 0, as f32 that broadcast with `xf`, which is x in f32."""
        zero = _like(float(self.zero), xf) if self.zero else None
        if self.scale:
            return _like(self.scale, xf), zero
        axes = (-1,) if self.per == "token" else tuple(range(xf.type.rank))

        def over(size: Value, integers: int) -> Value:
            return prim.div(prim.maximum(size, _like(LEAST_MAGNITUDE, xf)), _like(float(integers), xf))

        if zero is None and not self.dynamic_zero:
            return over(prim.max(prim.abs(xf), axes), self.highest), None
        high, low = prim.max(xf, axes), prim.min(xf, axes)
        if not self.dynamic_zero:
            scale = over(high, self.highest - self.zero)
            if self.zero > self.lowest:
                scale = prim.maximum(scale, over(prim.neg(low), self.zero - self.lowest))
            return scale, zero
        none = _like(0.0, xf)
        low = prim.minimum(low, none)
        scale = over(prim.sub(prim.maximum(high, none), low), self.highest - self.lowest)
        return scale, prim.add(prim.round(prim.div(prim.neg(low), scale)), _like(float(self.lowest), xf))


LEAST_MAGNITUDE = 1e-30
"""What the largest magnitude of x is taken to be where it is less: a scale must not be 0."""


def decode(weight: Value, like: Value) -> Value:
    """`weight` as plain numbers in the dtype of `like`."""
    return weight if weight.type.encoding is None else prim.cast(weight, like.type.dtype)


class Embedding(NNOp, opname="nn.embedding"):
    """The rows of weight[vocab, features] at integer `ids`. An encoded table is decoded row by row to `f32`."""

    ids: Value
    weight: Value

    def infer(self) -> TensorType:
        w = self.weight.type
        require(self, w.rank == 2, "the weight must be a matrix [vocab, features]")
        require(self, self.ids.type.dtype.is_int, "ids must be integers")
        return tensor(w.dtype, (*self.ids.type.shape, w.shape[1]))

    def decompose(self) -> Value:
        table = self.weight if self.weight.type.encoding is None else prim.cast(self.weight, self.weight.type.dtype)
        return prim.gather(table, self.ids, 0)


class RMSNorm(NNOp, opname="nn.rms_norm"):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, the mean taken in f32 (Zhang & Sennrich 2019)."""

    x: Value
    weight: Value | None = None
    eps: float = 1e-6

    def infer(self) -> TensorType:
        return _norm_type(self, self.x, self.weight)

    def decompose(self) -> Value:
        xf = _in_f32(self.x)
        mean = prim.mean(prim.pow(xf, _like(2.0, xf)), (-1,))
        n = _to_dtype_of(prim.mul(xf, prim.rsqrt(prim.add(mean, _like(self.eps, xf)))), self.x)
        return n if self.weight is None else prim.mul(n, self.weight)


class LayerNorm(NNOp, opname="nn.layer_norm"):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, computed in f32."""

    x: Value
    weight: Value | None = None
    bias: Value | None = None
    eps: float = 1e-5

    def infer(self) -> TensorType:
        return _norm_type(self, self.x, self.weight, self.bias)

    def decompose(self) -> Value:
        xf = _in_f32(self.x)
        centred = prim.sub(xf, prim.mean(xf, (-1,)))
        variance = prim.mean(prim.mul(centred, centred), (-1,))
        n = _to_dtype_of(prim.mul(centred, prim.rsqrt(prim.add(variance, _like(self.eps, xf)))), self.x)
        n = n if self.weight is None else prim.mul(n, self.weight)
        return n if self.bias is None else prim.add(n, self.bias)


def _norm_type(op: Op, x: Value, *parameters: Value | None) -> TensorType:
    t = require_float(op, x)
    for parameter in parameters:
        if parameter is None:
            continue
        p = parameter.type  # compared part by part: looking up the one right type takes half the time of a fusion
        if p.shape != t.shape[-1:] or p.element is not t.dtype:
            raise fail(op, "weight and bias must be one vector over the last axis, in the dtype of x")
    return t if t.encoding is None else tensor(t.dtype, t.shape)


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
        cos, sin = (_to_dtype_of(prim.mul(f(angles), _like(self.scale, angles)), x) for f in (prim.cos, prim.sin))
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
        scores = prim.reshape(_in_f32(prim.matmul(q, _swap_last(self.k))), (batch, heads, seq, total))
        scores = prim.mul(scores, _like(self.scale, scores))
        if self.softcap:
            cap = _like(self.softcap, scores)
            scores = prim.mul(prim.tanh(prim.div(scores, cap)), cap)
        hidden = _like(float("-inf"), scores)
        visible = self._visible(seq, total)
        if visible is not None:
            scores = prim.where(visible, scores, hidden)
        if self.mask is not None:
            if self.mask.type.dtype is bool_:
                scores = prim.where(self.mask, scores, hidden)
            else:
                scores = prim.add(scores, _in_f32(self.mask))
        if self.sinks is not None:
            column = prim.expand(prim.reshape(_in_f32(self.sinks), (1, heads, 1, 1)), (batch, heads, seq, 1))
            scores = prim.slice(softmax(prim.concat((scores, column), -1)), -1, 0, total)
        else:
            scores = softmax(scores)
        weights = prim.reshape(_to_dtype_of(scores, self.v), (batch, kv_heads, groups * seq, total))
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


class QuantizeCache(NNOp, opname="nn.quantize_cache"):
    """Keys or values x[batch, kv_heads, seq, head_dim] as the codes of a cache: round(x / scale), cut to `bits`.

    `scale` is f32 and broadcasts with x: [kv_heads, 1, head_dim] per channel, [1] for all. Codes of 8 bits are i8; two
    of 4 bits share a u8 [..., head_dim / 2], feature 2i in the lower half, each plus 8. Halves go to even.
    """

    x: Value
    scale: Value
    bits: int = 8

    def infer(self) -> TensorType:
        x = require_float(self, self.x)
        require(self, self.bits in (4, 8), "bits must be 4 or 8")
        require(self, x.rank == 4, "x must be [batch, kv_heads, seq, head_dim]")
        _require_cache_scale(self, x, self.scale.type)
        if self.bits == 8:
            return tensor(i8, x.shape)
        require(self, dims.mod(x.shape[3], 2) == 0, "4 bits need an even head_dim")
        return tensor(u8, (*x.shape[:3], dims.floordiv(x.shape[3], 2)))

    def decompose(self) -> Value:
        xf = _in_f32(self.x)
        half = 1 << (self.bits - 1)
        steps = prim.round(prim.div(xf, self.scale))
        steps = prim.minimum(prim.maximum(steps, _like(-half, xf)), _like(half - 1, xf))
        if self.bits == 8:
            return prim.cast(steps, i8)
        width = self.x.type.shape[3]
        low, high = (prim.add(prim.slice(steps, -1, start, width, 2), _like(8, xf)) for start in (0, 1))
        return prim.cast(prim.add(low, prim.mul(high, _like(16, xf))), u8)


class DequantizeCache(NNOp, opname="nn.dequantize_cache"):
    """The numbers that the codes of `nn.quantize_cache` stand for: code * scale, computed in f32, as `dtype`."""

    codes: Value
    scale: Value
    dtype: DType
    bits: int = 8

    def infer(self) -> TensorType:
        codes = self.codes.type
        require(self, self.bits in (4, 8), "bits must be 4 or 8")
        require(self, codes.rank == 4, "codes must be [batch, kv_heads, total, head_dim]")
        kind = i8 if self.bits == 8 else u8
        require(self, codes.dtype is kind and self.dtype.is_float, f"{self.bits}-bit codes are {kind}, and give floats")
        x = tensor(self.dtype, (*codes.shape[:3], codes.shape[3] * (8 // self.bits)))
        _require_cache_scale(self, x, self.scale.type)
        return x

    def decompose(self) -> Value:
        codes = prim.cast(self.codes, f32)
        if self.bits == 4:
            high = prim.floor(prim.mul(codes, _like(1 / 16, codes)))
            low = prim.sub(codes, prim.mul(high, _like(16, codes)))
            pair = (*codes.type.shape, 1)
            both = prim.concat((prim.reshape(low, pair), prim.reshape(high, pair)), -1)
            codes = prim.sub(prim.reshape(both, self.results[0].type.shape), _like(8, codes))
        return _to_dtype_of(prim.mul(codes, self.scale), self.results[0])


def _require_cache_scale(op: QuantizeCache | DequantizeCache, x: TensorType, scale: TensorType) -> None:
    fits = scale.shape in ((1,), (x.shape[1], 1, x.shape[3]))
    require(op, scale.dtype is f32 and fits, "the scale must be f32 [kv_heads, 1, head_dim] or [1]")


class Gelu(NNOp, opname="nn.gelu"):
    """x * Phi(x) (Hendrycks & Gimpel 2016); `approximate` is "none" (erf) or "tanh"."""

    x: Value
    approximate: str = "none"

    def infer(self) -> TensorType:
        require(self, self.approximate in ("none", "tanh"), 'approximate must be "none" or "tanh"')
        return tensor(require_float(self, self.x).dtype, self.x.type.shape)

    def decompose(self) -> Value:
        x = self.x
        if self.approximate == "none":
            inner = prim.erf(prim.mul(x, _like(0.7071067811865476, x)))
        else:
            cubic = prim.mul(prim.mul(x, prim.mul(x, x)), _like(0.044715, x))
            inner = prim.tanh(prim.mul(prim.add(x, cubic), _like(0.7978845608028654, x)))
        return prim.mul(prim.mul(x, _like(0.5, x)), prim.add(inner, _like(1.0, x)))


class Silu(NNOp, opname="nn.silu"):
    """x * sigmoid(x)."""

    x: Value

    def infer(self) -> TensorType:
        return tensor(require_float(self, self.x).dtype, self.x.type.shape)

    def decompose(self) -> Value:
        return prim.mul(self.x, prim.sigmoid(self.x))


class HardShrink(NNOp, opname="nn.hard_shrink"):
    """x where abs(x) > threshold, else 0 (as in torch)."""

    x: Value
    threshold: float = 0.0

    def infer(self) -> TensorType:
        require(self, 0 <= self.threshold < float("inf"), "the threshold must be finite, and not negative")
        return tensor(require_float(self, self.x).dtype, self.x.type.shape)

    def decompose(self) -> Value:
        kept = prim.gt(prim.abs(self.x), _like(self.threshold, self.x))
        return prim.where(kept, self.x, _like(0.0, self.x))


class Softmax(NNOp, opname="nn.softmax"):
    """exp(x) normalised to sum 1 over the last axis; a row of -inf alone gives zeros."""

    x: Value

    def infer(self) -> TensorType:
        return tensor(require_float(self, self.x).dtype, self.x.type.shape)

    def decompose(self) -> Value:
        top = prim.max(self.x, (-1,))
        # Keeps -inf - -inf from becoming nan in a row where everything is hidden.
        top = prim.where(prim.eq(top, _like(float("-inf"), top)), _like(0.0, top), top)
        e = prim.exp(prim.sub(self.x, top))
        total = prim.sum(e, (-1,))
        return prim.div(e, prim.where(prim.eq(total, _like(0.0, total)), _like(1.0, total), total))


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
"""The names that `activation` attributes may hold."""


def activate(x: Value, activation: str) -> Value:
    """The activation function of that name, applied to x."""
    match activation:
        case "silu":
            return silu(x)
        case "gelu":
            return gelu(x)
        case "gelu_tanh":
            return gelu(x, "tanh")
        case "relu":
            return prim.relu(x)
    raise IRError(f"unknown activation {activation!r}", f"one of {', '.join(ACTIVATIONS)}")


class GatedMLP(NNOp, opname="nn.gated_mlp"):
    """linear(activation(linear(x, gate)) * linear(x, up), down): the feed-forward block of Llama (Shazeer 2020).

    gate, up: [ffn, hidden]; down: [hidden, ffn].
    """

    matrices = ("gate", "up", "down")

    x: Value
    gate: Value
    up: Value
    down: Value
    gate_bias: Value | None = None
    up_bias: Value | None = None
    down_bias: Value | None = None
    activation: str = "silu"

    def infer(self) -> TensorType:
        require(self, self.activation in ACTIVATIONS, f"activation must be one of {', '.join(ACTIVATIONS)}")
        gate, up, down = self.gate.type.shape, self.up.type.shape, self.down.type.shape
        require(self, len(gate) == len(up) == len(down) == 2, "the weights must be matrices [out, in]")
        require(self, gate == up and down[1] == gate[0], "gate, up and down do not fit together")
        require(self, self.x.type.shape[-1] == gate[1], "x does not fit the weights")
        return tensor(require_float(self, self.x).dtype, (*self.x.type.shape[:-1], down[0]))

    def decompose(self) -> Value:
        gate = activate(linear(self.x, self.gate, self.gate_bias), self.activation)
        return linear(prim.mul(gate, linear(self.x, self.up, self.up_bias)), self.down, self.down_bias)


class AddRMSNorm(NNOp, opname="nn.add_rms_norm"):
    """The sum x + residual, and its rms_norm: the residual stream and what the next block reads."""

    x: Value
    residual: Value
    weight: Value
    eps: float = 1e-6

    def infer(self) -> tuple[TensorType, TensorType]:
        require(self, self.x.type is self.residual.type, "x and residual differ in type")
        return self.x.type, _norm_type(self, self.x, self.weight)

    def decompose(self) -> tuple[Value, Value]:
        total = prim.add(self.x, self.residual)
        return total, rms_norm(total, self.weight, self.eps)


linear, embedding = expression(Linear), expression(Embedding)
low_rank_linear = expression(LowRankLinear)
quantize_activation = expression(QuantizeActivation)
add_rms_norm = expressions(AddRMSNorm)
rms_norm, layer_norm = expression(RMSNorm), expression(LayerNorm)
rope, attention, kv_update = expression(Rope), expression(Attention), expression(KVUpdate)
quantize_cache, dequantize_cache = expression(QuantizeCache), expression(DequantizeCache)
gelu, silu, softmax = expression(Gelu), expression(Silu), expression(Softmax)
gated_mlp = expression(GatedMLP)
hard_shrink = expression(HardShrink)
