"""Norms, alone and with the residual stream."""

from __future__ import annotations

from ..ir import Op, Value, expression, expressions
from ..types import TensorType, tensor
from . import prim
from .nn_op import NNOp, in_f32, like, to_dtype_of
from .shapes import fail, require, require_float


class RMSNorm(NNOp, opname="nn.rms_norm"):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, the mean taken in f32 (Zhang & Sennrich 2019)."""

    x: Value
    weight: Value | None = None
    eps: float = 1e-6

    def infer(self) -> TensorType:
        return _norm_type(self, self.x, self.weight)

    def decompose(self) -> Value:
        xf = in_f32(self.x)
        mean = prim.mean(prim.pow(xf, like(2.0, xf)), (-1,))
        n = to_dtype_of(prim.mul(xf, prim.rsqrt(prim.add(mean, like(self.eps, xf)))), self.x)
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
        xf = in_f32(self.x)
        centred = prim.sub(xf, prim.mean(xf, (-1,)))
        variance = prim.mean(prim.mul(centred, centred), (-1,))
        n = to_dtype_of(prim.mul(centred, prim.rsqrt(prim.add(variance, like(self.eps, xf)))), self.x)
        n = n if self.weight is None else prim.mul(n, self.weight)
        return n if self.bias is None else prim.add(n, self.bias)


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


def _norm_type(op: Op, x: Value, *parameters: Value | None) -> TensorType:
    t = require_float(op, x)
    for parameter in parameters:
        if parameter is None:
            continue
        p = parameter.type  # compared part by part: looking up the one right type takes half the time of a fusion
        if p.shape != t.shape[-1:] or p.element is not t.dtype:
            raise fail(op, "weight and bias must be one vector over the last axis, in the dtype of x")
    return t if t.encoding is None else tensor(t.dtype, t.shape)


add_rms_norm = expressions(AddRMSNorm)
rms_norm, layer_norm = expression(RMSNorm), expression(LayerNorm)
