"""How does one weight serve prompts in 8 bits and single tokens in 4? An If around two matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from irlab.backends.onnx import codes
from irlab.backends.onnx.dialect import HybridLinear
from irlab.backends.onnx.emitter import MICROSOFT, Emitter, Lowering, value_info
from irlab.backends.onnx.lowerings.microsoft import block_matmul
from irlab.ir import Op, Value, Weight
from irlab.ops import nn
from irlab.types import f32, i64, tensor
from irlab.weights import WeightSymbol

if TYPE_CHECKING:
    import onnx


def hybrid_linear(op: HybridLinear, e: Emitter) -> None:
    """If(seq > 1): 8-bit activations and weights, else the `token` weight."""
    seq = op.x.type.shape[-2]
    several = e.memo(("several", seq), lambda: e.node("Greater", e.sizes.scalar(seq), e.scalar(1, tensor(i64, ()))))
    bias = e[op.bias] if op.bias is not None else ""
    prompt, token = _symbol(op.prompt), _symbol(op.token)
    with e.subgraph():
        weight, scale = codes.per_column(e, prompt)
        x, largest = _evened_rows(e, op.x)
        inside = "" if largest else bias
        y = e.node("DynamicQuantizeMatMul", x, weight, scale, "", inside, domain=MICROSOFT)
        if largest:
            y = e.node("Mul", y, largest)
            y = e.node("Add", y, bias) if bias else y
        then_ = _branch(e, op, y, "prompt")
    with e.subgraph():
        inputs, attributes = block_matmul(e, op.x, token, bias)
        y = e.node("MatMulNBits", *inputs, **attributes)
        else_ = _branch(e, op, y, "token")
    e.result(op, "If", several, then_branch=then_, else_branch=else_)


def _evened_rows(e: Emitter, x: Value) -> tuple[str, str]:
    """x with each row divided by its largest magnitude, and those magnitudes; x itself and "" behind a norm.

    ONNX Runtime rounds x to 8 bits with one scale for all rows. Norms leave rows alike, but a single row can be a
    thousand times the others in what the down projection reads (the first token's, as a rule), and would erase them.
    """
    if isinstance(x.op, nn.RMSNorm | nn.LayerNorm):
        return e[x], ""

    def largest() -> str:
        top = e.node("ReduceMax", e.node("Abs", e[x]), e.ints(-1), keepdims=1)
        return e.node("Max", top, e.scalar(1e-30, tensor(f32, ())))

    top = e.memo(("largest", x), largest)
    return e.memo(("evened", x), lambda: e.node("Div", e[x], top)), top


def _branch(e: Emitter, op: Op, name: str, label: str) -> onnx.GraphProto:
    from onnx import helper

    return helper.make_graph(e.nodes, label, [], [value_info(name, op.result.type)])


def _symbol(weight: Value) -> WeightSymbol:
    assert isinstance(weight.op, Weight)
    return weight.op.symbol


LOWERINGS: Final[dict[type[Op], Lowering]] = {HybridLinear: hybrid_linear}
