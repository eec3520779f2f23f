"""Shape and dtype rules that several ops share."""

from __future__ import annotations

from collections.abc import Iterable

from ..dims import Size
from ..errors import TypeInferenceError
from ..ir import Op, Value
from ..types import DType, Shape, TensorType, bool_, tensor


def fail(op: Op, message: str, hint: str = "") -> TypeInferenceError:
    """The error for an op whose operands or attributes do not fit; raise it."""
    types = ", ".join("none" if v is None else str(v.type) for v in op.operands)
    return TypeInferenceError(f"{op.opname}({types}): {message}", hint, op)


def require(op: Op, condition: bool, message: str) -> None:
    """Raise unless `condition` holds."""
    if not condition:
        raise fail(op, message)


def require_float(op: Op, value: Value) -> TensorType:
    """The type of `value`, which must hold floating-point numbers."""
    if not value.type.dtype.is_float:
        raise fail(op, f"needs a floating-point operand, not {value.type}")
    return value.type


def require_numbers(op: Op, value: Value) -> TensorType:
    """The type of `value`, which must not be bool."""
    if value.type.dtype is bool_:
        raise fail(op, "is not defined on bool", "cast to a number first")
    return value.type


def same_dtype(op: Op, values: Iterable[Value | None]) -> DType:
    """The one dtype of all `values` that are there."""
    dtypes = {v.type.dtype for v in values if v is not None}
    if len(dtypes) != 1:
        raise fail(op, "operands differ in dtype", "cast one of them")
    return dtypes.pop()


def broadcast_shapes(op: Op, a: Shape, b: Shape) -> Shape:
    """The NumPy broadcast of two shapes; symbolic sizes must be equal or meet a 1."""
    if a is b or a == b:
        return a
    if len(a) < len(b):
        a, b = b, a
    out: list[Size] = list(a)
    for i in range(1, len(b) + 1):
        x, y = a[-i], b[-i]
        if x != y:
            if x == 1:
                out[-i] = y
            elif y != 1:
                raise fail(op, f"sizes {x} and {y} do not broadcast")
    return tuple(out)


def broadcast(op: Op, a: TensorType, b: TensorType) -> TensorType:
    """The type of an elementwise op on two operands of one dtype; encoded ones count as the numbers they decode to."""
    dtype = a.dtype
    if dtype is not b.dtype:
        raise fail(op, "operands differ in dtype", "cast one of them")
    return tensor(dtype, broadcast_shapes(op, a.shape, b.shape))
