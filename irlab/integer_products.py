"""How does a product of rounded activations become one of integers? What varies by token moves behind the product.

Runtimes multiply integers under one scale for all activations. With x rounded to (q - zero) * scale, W the matrix and
c = W 1 the sums of its rows,

    linear(x, W, b)  =  (linear(q, W) - zero c) * scale + b

so that a scale for each token, and a zero point where a runtime has none, are applied to the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .encodings import IntegerEncoding
from .ir import Graph, Value
from .ops import nn, prim
from .types import f32

UNIT = 128.0
"""Integers are carried as multiples of 1 / UNIT, a power of two: then products of them fit half types."""


@dataclass(frozen=True)
class Able:
    """What a backend lowers by itself. `holds`: an op as it is; `zero_points`: a zero point that is known."""

    holds: Callable[[nn.QuantizeActivation], bool]
    zero_points: bool


def is_product(linear: nn.Linear) -> bool:
    """Whether the weight of `linear` is 8 bits under one scale a row: as integers it can be multiplied."""
    encoding, columns = linear.weight.type.encoding, linear.weight.type.shape[-1]
    if not isinstance(encoding, IntegerEncoding) or not isinstance(columns, int):
        return False
    # As many scales as rows: with one for the tensor (-1) they are equal.
    return encoding.bits == 8 and encoding.symmetric and encoding.groups(columns) == 1


def products(op: nn.QuantizeActivation) -> list[nn.Linear]:
    """The linears that read `op` and can multiply integers."""
    return [user for user in op.result.uses if isinstance(user, nn.Linear) and user.x is op.result and is_product(user)]


def multiplies_integers(linear: nn.Linear) -> bool:
    """Whether `linear` is a product of integers: its x is rounded to 8 bits, and its weight can be multiplied."""
    return isinstance(linear.x.op, nn.QuantizeActivation) and linear.x.op.bits == 8 and is_product(linear)


def prepare(graph: Graph, able: Able, made_by: str) -> None:
    """Rewrite the rounded activations of `graph` into such as `able` holds; decompose those that no product reads."""
    for op in graph.find(nn.QuantizeActivation):
        found = products(op) if op.bits == 8 else []
        if found and not able.holds(op):
            _move_behind(graph, op, found, able.zero_points, made_by)
        if op.graph is not None and (not found or not able.holds(op)):
            graph.replace(op, op.decompose(), made_by=made_by)


def _move_behind(graph: Graph, op: nn.QuantizeActivation, readers: list[nn.Linear], fixed: bool, made_by: str) -> None:
    x, dtype = op.x, op.x.type.dtype
    xf = x if dtype is f32 else prim.cast(x, f32)
    scale, zero = op.scale_and_zero(xf)
    unit = prim.mul(scale, prim.constant(UNIT, f32))
    normal = prim.div(xf, unit)
    shift = None
    if zero is not None and (op.dynamic_zero or not fixed):
        shift = prim.div(zero, prim.constant(UNIT, f32))
        normal = prim.add(normal, shift)
    kept = op.zero if shift is None else 0
    integers = nn.quantize_activation(_cast(normal, dtype), per="tensor", scale=1 / UNIT, zero=kept)
    for linear in readers:
        y = nn.linear(integers, linear.weight)
        if shift is not None:
            ones = prim.constant(1.0, dtype, (1,) * (x.type.rank - 1) + x.type.shape[-1:])
            y = prim.sub(y, prim.mul(_cast(shift, dtype), nn.linear(ones, linear.weight)))
        y = prim.mul(y, _cast(unit, dtype))
        graph.replace(linear, y if linear.bias is None else prim.add(y, linear.bias), made_by=made_by)


def _cast(x: Value, dtype: object) -> Value:
    return x if x.type.dtype is dtype else prim.cast(x, dtype)  # type: ignore[arg-type]
