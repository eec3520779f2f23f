"""Rounding of what is computed: activations, and the keys and values of a cache."""

from __future__ import annotations

from .. import dims
from ..ir import Value, expression
from ..types import DType, TensorType, f8e4m3, f32, i8, tensor, u8
from . import prim
from .nn_op import NNOp, in_f32, like, to_dtype_of
from .shapes import require, require_float

LEAST_MAGNITUDE = 1e-30
"""What the largest magnitude of x is taken to be where it is less: a scale must not be 0."""

E4M3_MAX, E2M1_MAX = 448.0, 6.0
"""The largest numbers of the formats of small floats."""

BLOCK = 16
"""Numbers of NVFP4 to a scale."""


class ActivationRounding(NNOp):
    """What rounds x to few bits, and gives it as numbers again."""

    x: Value


class QuantizeActivation(ActivationRounding, opname="nn.quantize_activation"):
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
        xf = in_f32(self.x)
        scale, zero = self.scale_and_zero(xf)
        steps = prim.round(prim.div(xf, scale))
        steps = steps if zero is None else prim.add(steps, zero)
        steps = prim.minimum(prim.maximum(steps, like(float(self.lowest), xf)), like(float(self.highest), xf))
        steps = steps if zero is None else prim.sub(steps, zero)
        return to_dtype_of(prim.mul(steps, scale), self.x)

    def scale_and_zero(self, xf: Value) -> tuple[Value, Value | None]:
        """The scale and the zero point, None where that is 0, as f32 that broadcast with `xf`, which is x in f32."""
        zero = like(float(self.zero), xf) if self.zero else None
        if self.scale:
            return like(self.scale, xf), zero
        axes = (-1,) if self.per == "token" else tuple(range(xf.type.rank))

        def over(size: Value, integers: int) -> Value:
            return prim.div(prim.maximum(size, like(LEAST_MAGNITUDE, xf)), like(float(integers), xf))

        if zero is None and not self.dynamic_zero:
            return over(prim.max(prim.abs(xf), axes), self.highest), None
        high, low = prim.max(xf, axes), prim.min(xf, axes)
        if not self.dynamic_zero:
            scale = over(high, self.highest - self.zero)
            if self.zero > self.lowest:
                scale = prim.maximum(scale, over(prim.neg(low), self.zero - self.lowest))
            return scale, zero
        none = like(0.0, xf)
        low = prim.minimum(low, none)
        scale = over(prim.sub(prim.maximum(high, none), low), self.highest - self.lowest)
        return scale, prim.add(prim.round(prim.div(prim.neg(low), scale)), like(float(self.lowest), xf))


class QuantizeActivationFloat(ActivationRounding, opname="nn.quantize_activation_float"):
    """x as small floats under a scale hold it: the nearest float to x / scale, halves to even, times scale.

        element   per      scale
        e4m3      token    found in each row over the last axis: its largest magnitude / 448               FP8
                  tensor   given, or found in all of x                                                     FP8
        e2m1      block    s * scale for 16 numbers along the last axis; s is the E4M3 nearest to the      NVFP4
                           block's largest magnitude / (6 scale), and `scale` is given

    Larger numbers are cut to the largest float, scales s to 448. All is computed in f32, the result has the dtype of x.
    """

    element: str = "e4m3"
    per: str = "token"
    scale: float = 0.0

    def infer(self) -> TensorType:
        x = require_float(self, self.x)
        require(self, x.rank >= 1, "x must have an axis")
        require(self, self.element in ("e4m3", "e2m1"), 'the element must be "e4m3" or "e2m1"')
        require(self, 0 <= self.scale < float("inf"), "the scale must be positive, or 0 where it is found in x")
        if self.element == "e2m1":
            require(self, self.per == "block" and self.scale > 0, 'e2m1 is per "block", under a scale that is given')
            require(self, dims.mod(x.shape[-1], BLOCK) == 0, f"rows must be whole blocks of {BLOCK}")
        else:
            require(self, self.per in ("token", "tensor"), 'e4m3 is per "token" or "tensor"')
            require(self, not self.scale or self.per == "tensor", 'a scale that is given is per "tensor"')
        return tensor(x.dtype, x.shape)

    def decompose(self) -> Value:
        xf = in_f32(self.x)
        if self.element == "e4m3":
            scale = self.found_scale(xf)
            return to_dtype_of(prim.mul(_to_e4m3(prim.div(xf, scale)), scale), self.x)
        blocks = prim.reshape(xf, (*xf.type.shape[:-1], dims.floordiv(xf.type.shape[-1], BLOCK), BLOCK))
        largest = prim.max(prim.abs(blocks), (-1,))
        scale = prim.mul(_to_e4m3(prim.div(largest, like(E2M1_MAX * self.scale, xf))), like(self.scale, xf))
        none = prim.eq(scale, like(0.0, xf))
        steps = prim.div(blocks, prim.where(none, like(1.0, xf), scale))
        return to_dtype_of(prim.reshape(prim.mul(_to_e2m1(steps), scale), xf.type.shape), self.x)

    def found_scale(self, xf: Value) -> Value:
        """The scale of e4m3, as f32 that broadcasts with `xf`, which is x in f32."""
        if self.scale:
            return like(self.scale, xf)
        axes = (-1,) if self.per == "token" else tuple(range(xf.type.rank))
        largest = prim.maximum(prim.max(prim.abs(xf), axes), like(LEAST_MAGNITUDE, xf))
        return prim.div(largest, like(E4M3_MAX, xf))


def _cut(x: Value, largest: float) -> Value:
    return prim.minimum(prim.maximum(x, like(-largest, x)), like(largest, x))


def _to_e4m3(x: Value) -> Value:
    return prim.cast(prim.cast(_cut(x, E4M3_MAX), f8e4m3), f32)


def _to_e2m1(x: Value) -> Value:
    """Between powers of two, floats of one bit of mantissa are multiples of half the lower one."""
    size = prim.abs(x)
    step = prim.where(prim.lt(size, like(4.0, x)), like(1.0, x), like(2.0, x))
    step = prim.where(prim.lt(size, like(2.0, x)), like(0.5, x), step)
    return _cut(prim.mul(prim.round(prim.div(x, step)), step), E2M1_MAX)


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
        xf = in_f32(self.x)
        half = 1 << (self.bits - 1)
        steps = prim.round(prim.div(xf, self.scale))
        steps = prim.minimum(prim.maximum(steps, like(-half, xf)), like(half - 1, xf))
        if self.bits == 8:
            return prim.cast(steps, i8)
        width = self.x.type.shape[3]
        low, high = (prim.add(prim.slice(steps, -1, start, width, 2), like(8, xf)) for start in (0, 1))
        return prim.cast(prim.add(low, prim.mul(high, like(16, xf))), u8)


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
            high = prim.floor(prim.mul(codes, like(1 / 16, codes)))
            low = prim.sub(codes, prim.mul(high, like(16, codes)))
            pair = (*codes.type.shape, 1)
            both = prim.concat((prim.reshape(low, pair), prim.reshape(high, pair)), -1)
            codes = prim.sub(prim.reshape(both, self.results[0].type.shape), like(8, codes))
        return to_dtype_of(prim.mul(codes, self.scale), self.results[0])


def _require_cache_scale(op: QuantizeCache | DequantizeCache, x: TensorType, scale: TensorType) -> None:
    fits = scale.shape in ((1,), (x.shape[1], 1, x.shape[3]))
    require(op, scale.dtype is f32 and fits, "the scale must be f32 [kv_heads, 1, head_dim] or [1]")


quantize_activation = expression(QuantizeActivation)
quantize_activation_float = expression(QuantizeActivationFloat)
quantize_cache, dequantize_cache = expression(QuantizeCache), expression(DequantizeCache)
