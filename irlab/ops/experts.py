"""Mixtures of experts: feed-forward blocks of which each token is sent through a few."""

from __future__ import annotations

from ..ir import Op, Value, expression
from ..types import TensorType, tensor
from . import prim
from .activations import ACTIVATIONS, activate, softmax
from .linear import decode
from .nn_op import NNOp, in_f32, swap_last, to_dtype_of
from .shapes import fail, require, require_float


class Experts(NNOp, opname="nn.experts"):
    """For each token, the sum over its k chosen experts e of score * down_e(activation(gate_e(x)) * up_e(x)).

    x: [..., hidden]; chosen: integers[..., k], which expert, and scores: floats[..., k], how much of it; the sum is
    made in f32. gate, up: [experts, ffn, hidden]; down: [experts, hidden, ffn]. Encoded weights are decoded to the
    dtype of x first. It is what TensorRT's MoE layer computes; any way of choosing experts can stand before it.
    """

    stacks = ("gate", "up", "down")

    x: Value
    chosen: Value
    scores: Value
    gate: Value
    up: Value
    down: Value
    activation: str = "silu"

    def infer(self) -> TensorType:
        chosen, scores = self.chosen.type, self.scores.type
        require(self, chosen.dtype.is_int, "the chosen experts must be integers")
        require(self, scores.dtype.is_float, "the scores must be floats")
        require(self, chosen.shape == scores.shape, "the chosen experts and their scores differ in shape")
        require(
            self,
            chosen.rank >= 1 and chosen.shape[:-1] == self.x.type.shape[:-1],
            "chosen must be [..., k], x [..., hidden]",
        )
        return _infer_stacks(self, self.x, self.gate, self.up, self.down, self.activation)

    def decompose(self) -> Value:
        *lead, k = self.chosen.type.shape
        row = prim.reshape(self.x, (*lead, 1, 1, self.x.type.shape[-1]))
        inner = prim.mul(activate(self._product(row, self.gate), self.activation), self._product(row, self.up))
        each = in_f32(self._product(inner, self.down))
        weighted = prim.mul(each, prim.reshape(in_f32(self.scores), (*lead, k, 1, 1)))
        total = prim.reshape(prim.sum(weighted, (-3,)), self.results[0].type.shape)
        return to_dtype_of(total, self.x)

    def _product(self, rows: Value, stack: Value) -> Value:
        """rows[..., k or 1, 1, in] with the matrices of the chosen experts: [..., k, 1, out]."""
        return prim.matmul(rows, swap_last(prim.gather(decode(stack, self.x), self.chosen, 0)))


class MoE(NNOp, opname="nn.moe"):
    """A mixture of experts (Shazeer et al. 2017): nn.experts over the `top_k` experts that a router finds likeliest.

    x: [..., hidden]; logits: [..., experts], of the router, whose softmax is taken in f32. The scores are the top_k
    probabilities, which are divided by their sum if `normalise` (Mixtral, Qwen3-MoE; OLMoE leaves them).
    gate, up: [experts, ffn, hidden]; down: [experts, hidden, ffn].
    """

    stacks = ("gate", "up", "down")

    x: Value
    logits: Value
    gate: Value
    up: Value
    down: Value
    top_k: int
    activation: str = "silu"
    normalise: bool = True

    def infer(self) -> TensorType:
        logits, count = require_float(self, self.logits), self.gate.type.shape[:1]
        require(
            self,
            logits.rank >= 1 and logits.shape == (*self.x.type.shape[:-1], *count),
            "the logits must be [..., experts], one for each expert of the weights",
        )
        kind = _infer_stacks(self, self.x, self.gate, self.up, self.down, self.activation)
        experts = count[0]
        if self.top_k < 1 or (isinstance(experts, int) and self.top_k > experts):
            raise fail(self, f"top_k = {self.top_k} is outside the {experts} experts")
        return kind

    def route(self) -> tuple[Value, Value]:
        """The chosen experts i64[..., top_k], likeliest first, and their scores f32[..., top_k]."""
        scores, chosen = prim.topk(softmax(in_f32(self.logits)), self.top_k)
        if self.normalise:
            scores = prim.div(scores, prim.sum(scores, (-1,)))
        return chosen, scores

    def decompose(self) -> Value:
        chosen, scores = self.route()
        return experts(self.x, chosen, scores, self.gate, self.up, self.down, self.activation)


def _infer_stacks(op: Op, x: Value, gate: Value, up: Value, down: Value, activation: str) -> TensorType:
    """The type of the result, if the weights fit x and one another."""
    require(op, activation in ACTIVATIONS, f"activation must be one of {', '.join(ACTIVATIONS)}")
    kinds = [value.type for value in (gate, up, down)]
    require(op, all(kind.rank == 3 for kind in kinds), "the weights must be stacks of matrices [experts, out, in]")
    (count, ffn, hidden), (downs, out, inner) = kinds[0].shape, kinds[2].shape
    fits = kinds[1].shape == kinds[0].shape and (downs, inner) == (count, ffn)
    require(op, fits, "gate, up and down do not fit together")
    require(op, x.type.shape[-1:] == (hidden,), "x does not fit the weights")
    plain = [kind.dtype for kind in kinds if kind.encoding is None]
    require(op, all(dtype is x.type.dtype for dtype in plain), "the weights and x differ in dtype")
    return tensor(require_float(op, x).dtype, (*x.type.shape[:-1], out))


experts, moe = expression(Experts), expression(MoE)
