"""Activation functions, and softmax."""

from __future__ import annotations

from ..errors import IRError
from ..ir import Value, expression
from ..types import TensorType, tensor
from . import prim
from .nn_op import NNOp, like
from .shapes import require, require_float


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
            inner = prim.erf(prim.mul(x, like(0.7071067811865476, x)))
        else:
            cubic = prim.mul(prim.mul(x, prim.mul(x, x)), like(0.044715, x))
            inner = prim.tanh(prim.mul(prim.add(x, cubic), like(0.7978845608028654, x)))
        return prim.mul(prim.mul(x, like(0.5, x)), prim.add(inner, like(1.0, x)))


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
        kept = prim.gt(prim.abs(self.x), like(self.threshold, self.x))
        return prim.where(kept, self.x, like(0.0, self.x))


class Softmax(NNOp, opname="nn.softmax"):
    """exp(x) normalised to sum 1 over the last axis; a row of -inf alone gives zeros."""

    x: Value

    def infer(self) -> TensorType:
        return tensor(require_float(self, self.x).dtype, self.x.type.shape)

    def decompose(self) -> Value:
        top = prim.max(self.x, (-1,))
        # Keeps -inf - -inf from becoming nan in a row where everything is hidden.
        top = prim.where(prim.eq(top, like(float("-inf"), top)), like(0.0, top), top)
        e = prim.exp(prim.sub(self.x, top))
        total = prim.sum(e, (-1,))
        return prim.div(e, prim.where(prim.eq(total, like(0.0, total)), like(1.0, total), total))


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


gelu, silu, softmax = expression(Gelu), expression(Silu), expression(Softmax)
hard_shrink = expression(HardShrink)
