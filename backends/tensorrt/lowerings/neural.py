"""How are the LLM-level ops said in TensorRT? Norms and softmax as its layers, products over weights as they are."""

from __future__ import annotations

from typing import Final

from irlab.backends.tensorrt.emitter import Emitter, Lowering
from irlab.backends.tensorrt.library import ITensor, load
from irlab.backends.tensorrt.lowerings.arithmetic import elementwise, unary
from irlab.backends.tensorrt.numbers import trt_type
from irlab.ir import Op, Value, Weight
from irlab.ops import nn, prim
from irlab.types import DType, f32


def _matmul(op: prim.MatMul, e: Emitter) -> None:
    a, b = e.aligned(op.x, op.y)
    plain = load().MatrixOperation.NONE
    e.result(op, "matrix_multiply", a, plain, b, plain)


def _linear(op: nn.Linear, e: Emitter) -> None:
    """x times the transposed weight; TensorRT finds the codes behind the Dequantize that feeds it."""
    operations = load().MatrixOperation
    rank = op.x.type.rank
    weight = e.unsqueezed(matrix(e, op.weight, op.x.type.dtype), range(rank - 2))
    form = operations.VECTOR if rank == 1 else operations.NONE
    y = e.tensor("matrix_multiply", e[op.x], form, weight, operations.TRANSPOSE)
    if op.bias is not None:
        y = elementwise(e, "SUM", y, e.widened(op.bias, rank))
    e.bind(op.result, y)


def _quantize_activation(op: nn.QuantizeActivation, e: Emitter) -> None:
    """A Quantize layer under a constant scale, and a Dequantize: the builder multiplies integers where a product of
    decoded weights follows."""
    scale = e.number(op.scale, f32)
    integers = e.tensor("quantize", e[op.x], scale, load().int8)
    e.result(op, "dequantize", integers, scale, trt_type(op.x.type.dtype))


def _quantize_activation_float(op: nn.QuantizeActivationFloat, e: Emitter) -> None:
    """FP8 as integers. NVFP4 by a layer that finds the scales of blocks, as FP8 under that of the tensor."""
    types, dtype, scale = load(), trt_type(op.x.type.dtype), e.number(op.scale, f32)
    if op.element == "e4m3":
        e.result(op, "dequantize", e.tensor("quantize", e[op.x], scale, types.fp8), scale, dtype)
        return
    layer = e.add("dynamic_quantize", e[op.x], op.x.type.rank - 1, nn.BLOCK, types.fp4, types.fp8)
    layer.set_input(1, scale)
    blocks = e.tensor("dequantize", layer.get_output(1), scale, dtype)
    e.result(op, "dequantize", layer.get_output(0), blocks, dtype)


def matrix(e: Emitter, weight: Value, dtype: DType) -> ITensor:
    """A weight as numbers of `dtype`: itself, or decoded."""
    producer = weight.op
    if isinstance(producer, Weight) and producer.symbol.type.encoding is not None:
        return e.decoded(producer.symbol, dtype)
    return e[weight]


def _embedding(op: nn.Embedding, e: Emitter) -> None:
    """Rows of the table. An encoded one stays encoded in the engine: the builder decodes the rows that are read."""
    e.result(op, "gather", matrix(e, op.weight, op.result.type.dtype), e[op.ids], 0)


def _layer_norm(op: nn.LayerNorm, e: Emitter) -> None:
    """A normalization layer in f32, as the op says, with scale and bias in it."""
    import numpy as np

    rank, width = op.x.type.rank, op.x.type.shape[-1]
    if not isinstance(width, int):
        raise e.refused("normalization", "a symbolic number of features")

    def parameter(value: Value | None, default: float) -> ITensor:
        if value is None:
            return e.array(np.full((1,) * (rank - 1) + (width,), default, np.float32), f32)
        return e.cast(e.widened(value, rank), f32)

    x = e.cast(e[op.x], f32)
    layer = e.add("normalization_v2", x, parameter(op.weight, 1.0), parameter(op.bias, 0.0), 1 << (rank - 1))
    layer.epsilon = op.eps
    e.bind(op.result, e.cast(layer.get_output(0), op.x.type.dtype))


def _softmax(op: nn.Softmax, e: Emitter) -> None:
    layer = e.add("softmax", e[op.x])
    layer.axes = 1 << (op.x.type.rank - 1)
    y = layer.get_output(0)
    if isinstance(op.x.op, prim.Where | prim.Add):
        # Only a mask hides a whole row: that gives nan where the IR gives zeros.
        zero = e.number(0.0, op.x.type.dtype, op.x.type.rank)
        y = e.tensor("select", unary(e, "ISNAN", y), zero, y)
    e.bind(op.result, y)


LOWERINGS: Final[dict[type[Op], Lowering]] = {
    prim.MatMul: _matmul,
    nn.Linear: _linear,
    nn.QuantizeActivation: _quantize_activation,
    nn.QuantizeActivationFloat: _quantize_activation_float,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.Softmax: _softmax,
}
