"""Products with weight matrices, and rows of tables."""

from __future__ import annotations

from ..ir import Value, expression
from ..types import TensorType, tensor
from . import prim
from .nn_op import NNOp, swap_last
from .shapes import require, require_float


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
        product = prim.matmul(self.x, swap_last(w)) if self.x.type.rank > 1 else None
        if product is None:
            row = prim.reshape(self.x, (1, *self.x.type.shape))
            product = prim.reshape(prim.matmul(row, swap_last(w)), self.results[0].type.shape)
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


def decode(weight: Value, like: Value) -> Value:
    """`weight` as plain numbers in the dtype of `like`."""
    return weight if weight.type.encoding is None else prim.cast(weight, like.type.dtype)


linear, embedding = expression(Linear), expression(Embedding)
low_rank_linear = expression(LowRankLinear)
