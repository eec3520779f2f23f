"""How are activations rounded to FP8 where a scale is found when the model runs? Quantize layers take constant ones.

With x rounded to e4m3(x / scale) * scale and W the matrix,

    linear(x, W, b)  =  linear(e4m3(x / scale), W) * scale + b

so that the layer has the scale 1, and what varies by token moves behind the product, as for integers
(irlab/integer_products.py).
"""

from __future__ import annotations

from typing import Final

from irlab.ir import Graph, Value
from irlab.ops import nn, prim
from irlab.target import Holding
from irlab.types import DType, f32

_MADE_BY: Final = "tensorrt-fp8"


def prepare(graph: Graph) -> None:
    """Rewrite roundings to FP8 under scales that are found into such under constant ones."""
    for op in graph.find(nn.QuantizeActivationFloat):
        if op.element != "e4m3" or op.scale:
            continue
        x, dtype = op.x, op.x.type.dtype
        xf = _cast(x, f32)
        scale = op.found_scale(xf)
        unit = _cast(scale, dtype)
        steps = nn.quantize_activation_float(_cast(prim.div(xf, scale), dtype), "e4m3", "tensor", 1.0)
        for linear in [user for user in op.result.uses if isinstance(user, nn.Linear) and user.x is op.result]:
            y = prim.mul(nn.linear(steps, linear.weight), unit)
            graph.replace(linear, y if linear.bias is None else prim.add(y, linear.bias), made_by=_MADE_BY)
        if op.graph is not None:
            graph.replace(op, prim.mul(steps, unit), made_by=_MADE_BY)


def holding(op: nn.QuantizeActivationFloat) -> tuple[Holding, str]:
    """How the plan says that `op` is held."""
    if op.element == "e2m1":
        if op.x.type.rank not in (2, 3):
            return "none", "DynamicQuantize layers take values of 2 and 3 axes"
        return "native", "a DynamicQuantize layer and Dequantize layers: NVFP4, for Blackwell"
    behind = "" if op.scale else ", scales behind products"
    return "native", f"Quantize and Dequantize around FP8{behind}"


def _cast(x: Value, dtype: DType) -> Value:
    return x if x.type.dtype is dtype else prim.cast(x, dtype)
