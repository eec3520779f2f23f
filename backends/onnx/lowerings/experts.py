"""How are mixtures of experts said in ONNX? As MoE, or QMoE over codes, of ONNX Runtime; what they cannot say, a
product of every expert says.

Both ops know the gated activation of Llama alone on a CPU, as "swiglu" with alpha 1 and beta 0, and take the rows of
gate and up in turns. They softmax over all experts, choose, and divide by the sum if they are told to.
"""

from __future__ import annotations

from typing import Any, Final

from irlab.backends.onnx import codes, storage
from irlab.backends.onnx.emitter import MICROSOFT, Emitter, Lowering
from irlab.backends.onnx.vocabulary import Vocabulary
from irlab.encodings import Encoding, IntegerEncoding
from irlab.ir import Op, Value, Weight
from irlab.ops import nn
from irlab.weights import Concat, Reshape, WeightSymbol, static_shape

_SWIGLU: Final = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}
"""silu(gate) * up, rows of both in turns."""


def fits(op: nn.MoE, vocabulary: Vocabulary, accuracy_level: int) -> bool:
    """Whether MoE or QMoE says it: weights of one kind, and the activation that they have. Of codes of 8 bits, QMoE
    rounds activations to 8 bits on a CPU, whatever its accuracy level is."""
    kinds = {value.type.element for value in (op.gate, op.up, op.down)}
    weights = all(isinstance(value.op, Weight) for value in (op.gate, op.up, op.down))
    if not weights or len(kinds) != 1 or op.activation != "silu" or op.x.type.rank not in (2, 3):
        return False
    if op.down.type.shape[1] != op.x.type.shape[-1]:
        return False
    encoding = op.gate.type.encoding
    if encoding is None:
        return vocabulary.has("ms:MoE", op.x.type.dtype)
    bits = _bits_of_blocks(encoding)
    return (
        (bits == 4 or (bits == 8 and accuracy_level == 4))
        and vocabulary.blocks == "nbits"
        and vocabulary.has("ms:QMoE", op.x.type.dtype)
    )


def _bits_of_blocks(encoding: Encoding) -> int:
    """The bits of integers in blocks that the op has; 0 for others."""
    return encoding.bits if isinstance(encoding, IntegerEncoding) and encoding.group in codes.BLOCKS else 0


def moe(op: nn.MoE, e: Emitter) -> None:
    """MoE of plain weights, QMoE of blocks of codes."""
    count, _, _ = static_shape(op.gate.type)
    logits = e[op.logits] if op.logits.type.rank == 2 else e.node("Reshape", e[op.logits], e.ints(-1, count))
    attributes: dict[str, Any] = {
        "domain": MICROSOFT,
        "k": op.top_k,
        "normalize_routing_weights": int(op.normalise),
        **_SWIGLU,
    }
    first, second = _in_turns(op.gate, op.up), _symbol(op.down)
    encoding = first.type.encoding
    if not isinstance(encoding, IntegerEncoding):
        rows = e.once((first.name, "rows in turns"), lambda: storage.plain(e.unique(first.name), first))
        e.result(op, "MoE", e[op.x], logits, rows, "", e[op.down], "", **attributes)
        return
    one, two = (codes.stacked(e, symbol, op.x.type.dtype) for symbol in (first, second))
    inputs = [e[op.x], logits, *one[:2], "", *two[:2], "", "", "", "", one[2], two[2]]
    blocks: dict[str, Any] = {
        "expert_weight_bits": encoding.bits,
        "block_size": encoding.group,
        "accuracy_level": e.accuracy_level,
    }
    e.result(op, "QMoE", *inputs, **attributes, **blocks)


def _symbol(stack: Value) -> WeightSymbol:
    assert isinstance(stack.op, Weight)
    return stack.op.symbol


def _in_turns(gate: Value, up: Value) -> WeightSymbol:
    """[experts, 2 * ffn, hidden]: a row of gate, a row of up, and so on."""
    count, ffn, hidden = static_shape(gate.type)
    each = tuple(Reshape(_symbol(stack).recipe, (count, ffn, 1, hidden)) for stack in (gate, up))
    name = _symbol(gate).name
    return WeightSymbol(f"{name}_and_up", Reshape(Concat(each, 2), (count, 2 * ffn, hidden)))


LOWERINGS: Final[dict[type[Op], Lowering]] = {nn.MoE: moe}
