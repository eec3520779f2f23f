"""How are mixtures of experts said in TensorRT? As its MoE layer; legalisation leaves only those that it builds."""

from __future__ import annotations

from typing import Final

from irlab.backends.tensorrt.emitter import Emitter, Lowering
from irlab.backends.tensorrt.library import ITensor, load
from irlab.ir import Op, Value, Weight
from irlab.ops import nn
from irlab.types import i32
from irlab.weights import Transpose, WeightSymbol

ACTIVATIONS: Final = {"silu": "SILU"}
"""The layer's own names of the activation functions that it has between its products."""


def fits(op: nn.Experts) -> bool:
    """Whether the layer can say it: plain weights, and an activation that it has."""
    plain = all(isinstance(v.op, Weight) and v.type.encoding is None for v in (op.gate, op.up, op.down))
    return plain and op.activation in ACTIVATIONS and op.x.type.rank == 3


def _experts(op: nn.Experts, e: Emitter) -> None:
    """Its weights are [experts, in, out]."""
    scores = e.cast(e[op.scores], op.x.type.dtype)
    layer = e.add("moe", e[op.x], e.cast(e[op.chosen], i32), scores)
    kind = getattr(load().MoEActType, ACTIVATIONS[op.activation])
    layer.set_gated_weights(*(_turned(stack, e) for stack in (op.gate, op.up, op.down)), kind)
    e.bind(op.result, layer.get_output(0))


def _turned(stack: Value, e: Emitter) -> ITensor:
    assert isinstance(stack.op, Weight)
    symbol = stack.op.symbol
    return e.weight(WeightSymbol(symbol.name, Transpose(symbol.recipe, (0, 2, 1))))


LOWERINGS: Final[dict[type[Op], Lowering]] = {nn.Experts: _experts}
