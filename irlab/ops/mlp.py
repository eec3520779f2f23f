"""The feed-forward block."""

from __future__ import annotations

from ..ir import Value, expression
from ..types import TensorType, tensor
from . import prim
from .activations import ACTIVATIONS, activate
from .linear import linear
from .nn_op import NNOp
from .shapes import require, require_float


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


gated_mlp = expression(GatedMLP)
