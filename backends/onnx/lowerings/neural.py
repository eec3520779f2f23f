"""How are the LLM-level ops said in the ops of opset 23?"""

from __future__ import annotations

from typing import Final

from irlab.backends.onnx import storage
from irlab.backends.onnx.emitter import Emitter, Lowering
from irlab.ir import Op, Value, Weight
from irlab.ops import nn, prim
from irlab.types import DType


def linear(op: nn.Linear, e: Emitter) -> None:
    """A MatMul with the weight stored transposed, and an Add for the bias."""
    weight = matrix(e, op.weight, op.x.type.dtype)
    if op.bias is None:
        e.result(op, "MatMul", e[op.x], weight)
    else:
        e.result(op, "Add", e.node("MatMul", e[op.x], weight), e[op.bias])


def matrix(e: Emitter, weight: Value, dtype: DType) -> str:
    """A weight matrix [out, in] as MatMul takes it, [in, out]: stored so, unless it is also read in its own shape."""
    producer = weight.op
    if not isinstance(producer, Weight):
        return e.node("Transpose", e[weight], perm=(1, 0))
    symbol = producer.symbol
    if symbol.type.encoding is not None:
        from irlab.backends.onnx.codes import decoded_transposed

        return decoded_transposed(e, symbol, dtype)
    if has_other_readers(weight):
        return e.memo(("transposed", symbol.name), lambda: e.node("Transpose", e.weight(symbol), perm=(1, 0)))
    label = f"{symbol.name}.transposed"
    return e.once((symbol.name, "transposed"), lambda: storage.transposed(e.unique(label), symbol))


def has_other_readers(weight: Value) -> bool:
    """Whether something else than linears reads the weight, in its own shape."""
    return any(not isinstance(user, nn.Linear) for user in weight.uses)


def embedding(op: nn.Embedding, e: Emitter) -> None:
    """A Gather of rows; those of an encoded table are decoded after it."""
    producer = op.weight.op
    if isinstance(producer, Weight) and producer.symbol.type.encoding is not None:
        from irlab.backends.onnx.codes import gather_decoded

        gather_decoded(e, op, producer.symbol)
    else:
        e.result(op, "Gather", e[op.weight], e[op.ids], axis=0)


def scale(e: Emitter, op: nn.RMSNorm | nn.LayerNorm) -> str:
    """The scale operand, which ONNX insists on."""
    import numpy as np

    from irlab.weights import numpy_dtype

    if op.weight is not None:
        return e[op.weight]
    width = op.x.type.shape[-1]
    if isinstance(width, int):
        return e.array(np.ones(width, numpy_dtype(op.x.type.dtype)))
    return e.node("Expand", e.scalar(1.0, op.x.type), e.sizes.shape((width,)))


def rms_norm(op: nn.RMSNorm, e: Emitter) -> None:
    """RMSNormalization of opset 23."""
    e.result(op, "RMSNormalization", e[op.x], scale(e, op), axis=-1, epsilon=op.eps)


def layer_norm(op: nn.LayerNorm, e: Emitter) -> None:
    """LayerNormalization over the last axis."""
    bias = e[op.bias] if op.bias is not None else ""
    e.result(op, "LayerNormalization", e[op.x], scale(e, op), bias, axis=-1, epsilon=op.eps)


def gelu(op: nn.Gelu, e: Emitter) -> None:
    """Gelu of opset 20."""
    e.result(op, "Gelu", e[op.x], approximate=op.approximate)


def _silu(op: nn.Silu, e: Emitter) -> None:
    e.result(op, "Mul", e[op.x], e.node("Sigmoid", e[op.x]))


def _softmax(op: nn.Softmax, e: Emitter) -> None:
    if not isinstance(op.x.op, prim.Where | prim.Add):
        e.result(op, "Softmax", e[op.x], axis=-1)
        return
    # Only a mask hides a whole row: ONNX then gives nan where the IR gives zeros.
    y = e.node("Softmax", e[op.x], axis=-1)
    e.result(op, "Where", e.node("IsNaN", y), e.scalar(0.0, op.x.type), y)


LOWERINGS: Final[dict[type[Op], Lowering]] = {
    nn.Embedding: embedding,
    nn.RMSNorm: rms_norm,
    nn.LayerNorm: layer_norm,
    nn.Gelu: gelu,
    nn.Silu: _silu,
    nn.Softmax: _softmax,
}
