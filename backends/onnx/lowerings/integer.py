"""How are products of integers said in ONNX? Activations as u8, weights as i8 under one scale a row.

ONNX Runtime's CPU kernels multiply u8 by i8 (i8 by i8 runs at a tenth of the speed), so signed integers are moved up by
128. MatMulIntegerToFloat is ONNX Runtime's own op for it. Without that op a provider gets what it fuses by itself:
MatMulInteger behind DynamicQuantizeLinear, or, under scales that are known, a MatMul between DequantizeLinear; i8
without zero points, where it has none.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from irlab.backends.onnx import codes
from irlab.backends.onnx.emitter import MICROSOFT, Emitter, Lowering
from irlab.backends.onnx.storage import ONNX_TYPE
from irlab.backends.onnx.vocabulary import Vocabulary
from irlab.integer_products import Able, products
from irlab.ir import Op, Weight
from irlab.ops import nn
from irlab.types import f32
from irlab.weights import WeightSymbol

_UP: Final = 128
"""u8 is i8 moved up by so much."""

_FUSED: Final = "ms:MatMulIntegerToFloat"


def able(vocabulary: Vocabulary) -> Able:
    """Which integers the ops of a vocabulary find: under a scale that is known, or that DynamicQuantizeLinear finds."""
    moved = vocabulary.zero_points
    dynamic = vocabulary.has("DynamicQuantizeLinear") and (vocabulary.has(_FUSED) or vocabulary.has("MatMulInteger"))

    def holds(op: nn.QuantizeActivation) -> bool:
        return (moved or not op.zero) if op.scale else moved and dynamic and op.per == "tensor" and op.dynamic_zero

    return Able(holds, zero_points=moved)


def quantize_activation(op: nn.QuantizeActivation, e: Emitter) -> None:
    """The integers, shared by the products that read them; as floats again where something else does."""
    integers = _integers(op, e)
    if len(products(op)) < len(op.result.uses):
        e.result(op, "DequantizeLinear", *integers)


def _integers(op: nn.QuantizeActivation, e: Emitter) -> tuple[str, str, str]:
    """The integers of x, their scale and their zero point."""
    if op.scale:
        zero = np.array(op.zero + _UP, np.uint8) if e.vocabulary.zero_points else np.array(0, np.int8)
        names = e.array(np.array(op.scale, np.float32)), e.array(zero)
        return (e.memo(("integers", op.result), lambda: e.node("QuantizeLinear", e[op.x], *names)), *names)
    parts: list[str] = []

    def found() -> str:
        parts.extend(e.multiple("DynamicQuantizeLinear", e[op.x], outputs=3))
        return parts[0]

    integers = e.memo(("integers", op.result), found)
    scale, zero_point = (e.memo(("integers", op.result, i), lambda i=i: parts[i]) for i in (1, 2))  # type: ignore[misc]
    return integers, scale, zero_point


def _product(op: nn.Linear) -> tuple[nn.QuantizeActivation, WeightSymbol] | None:
    """The rounded activation and the weight that `op` multiplies as integers, if it does."""
    rounded, weight = op.x.op, op.weight.op
    if isinstance(rounded, nn.QuantizeActivation) and isinstance(weight, Weight) and op in products(rounded):
        return rounded, weight.symbol
    return None


def linear(otherwise: Lowering) -> Lowering:
    """The lowering of nn.linear: a product of integers where it can be one, else what `otherwise` says."""

    def lower(op: nn.Linear, e: Emitter) -> None:
        found = _product(op)
        if found is None:
            otherwise(op, e)
            return
        rounded, symbol = found
        integers, (weight, scales) = _integers(rounded, e), codes.per_column(e, symbol)
        if e.vocabulary.has(_FUSED):
            x, scale, zero = integers
            bias = e[op.bias] if op.bias is not None else ""
            e.result(op, "MatMulIntegerToFloat", x, weight, scale, scales, zero, "", bias, domain=MICROSOFT)
            return
        last = _between_floats(e, integers, weight, scales) if rounded.scale else _summed(e, integers, weight, scales)
        if op.bias is None:
            e.result(op, *last)
        else:
            e.result(op, "Add", e.node(*last), e[op.bias])

    return lower


def _between_floats(e: Emitter, integers: tuple[str, str, str], weight: str, scales: str) -> tuple[str, str, str]:
    return "MatMul", e.node("DequantizeLinear", *integers), e.node("DequantizeLinear", weight, scales, axis=1)


def _summed(e: Emitter, integers: tuple[str, str, str], weight: str, scales: str) -> tuple[str, str, str]:
    x, scale, zero = integers
    total = e.node("Cast", e.node("MatMulInteger", x, weight, zero), to=ONNX_TYPE[f32])
    return "Mul", total, e.node("Mul", scale, scales)


LOWERINGS: Final[dict[type[Op], Lowering]] = {nn.QuantizeActivation: quantize_activation}
