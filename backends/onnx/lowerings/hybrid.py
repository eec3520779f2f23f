"""How does one weight serve prompts in 8 bits and single tokens in 4? An If around two matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from irlab.backends.onnx import codes, storage
from irlab.backends.onnx.dialect import HybridLinear
from irlab.backends.onnx.emitter import MICROSOFT, Emitter, Lowering, value_info
from irlab.backends.onnx.lowerings import neural
from irlab.ir import Op, Value, Weight
from irlab.types import f32, i64, tensor
from irlab.weights import WeightSymbol

if TYPE_CHECKING:
    import onnx


def hybrid_linear(op: HybridLinear, e: Emitter, fast: bool) -> None:
    """If(seq > 1): 8-bit activations and weights, else the `token` weight."""
    from irlab.backends.onnx.lowerings import microsoft

    seq = op.x.type.shape[-2]
    several = e.memo(("several", seq), lambda: e.node("Greater", e.sizes.scalar(seq), e.scalar(1, tensor(i64, ()))))
    bias = e[op.bias] if op.bias is not None else ""
    prompt, token = _symbol(op.prompt), _symbol(op.token)
    quantized = None if fast else quantized_once(e, op.x)

    with e.subgraph():
        weight, scale = codes.per_column(e, prompt)
        if quantized is None:
            y = e.node("DynamicQuantizeMatMul", e[op.x], weight, scale, "", bias, domain=MICROSOFT)
        else:
            y = integer_matmul(e, quantized, weight, scale, bias)
        then_ = _branch(e, op, y, "prompt")
    with e.subgraph():
        if fast and microsoft.blocked(op.token) is not None:
            inputs, attributes = microsoft.block_matmul(e, op.x, token, bias)
            y = e.node("MatMulNBits", *inputs, **attributes)
        else:
            y = e.node("MatMul", e[op.x], neural.matrix(e, op.token, op.x.type.dtype))
            y = e.node("Add", y, bias) if bias else y
        else_ = _branch(e, op, y, "token")
    e.result(op, "If", several, then_branch=then_, else_branch=else_)


def quantized_once(e: Emitter, x: Value) -> tuple[str, str, str]:
    """x as u8 with its scale and zero point, computed once for all that read x."""
    first = e.memo(("quantized", x), lambda: e.node("DynamicQuantizeLinear", e[x], outputs=3))
    return first, f"{first}_1", f"{first}_2"


def integer_matmul(e: Emitter, x: tuple[str, str, str], weight: str, scale: str, bias: str) -> str:
    """The product in standard ops; ONNX Runtime fuses them to DynamicQuantizeMatMul."""
    product = e.node("Cast", e.node("MatMulInteger", x[0], weight, x[2]), to=storage.ONNX_TYPE[f32])
    y = e.node("Mul", product, e.node("Mul", x[1], scale))
    return e.node("Add", y, bias) if bias else y


def _branch(e: Emitter, op: Op, name: str, label: str) -> onnx.GraphProto:
    from onnx import helper

    return helper.make_graph(e.nodes, label, [], [value_info(name, op.result.type)])


def _symbol(weight: Value) -> WeightSymbol:
    assert isinstance(weight.op, Weight)
    return weight.op.symbol


def _portable(op: HybridLinear, e: Emitter) -> None:
    hybrid_linear(op, e, fast=False)


LOWERINGS: Final[dict[type[Op], Lowering]] = {HybridLinear: _portable}
