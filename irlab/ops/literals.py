"""Primitives that make values from attributes: constants, ranges, sizes as tensors."""

from __future__ import annotations

from ..dims import Size
from ..ir import Op, Value
from ..opdef import Axis
from ..types import DType, Shape, TensorType, bool_, i64, tensor

Number = bool | int | float


class Constant(Op, opname="prim.constant"):
    """One number, as a tensor of any shape filled with it; tensors of different numbers are weights."""

    value: Number
    type: TensorType

    def infer(self) -> TensorType:
        return self.type


def constant(value: Number, dtype: DType, shape: Shape = ()) -> Value:
    """A constant of `dtype`, rank 0 unless `shape` is given. The number is stored as the dtype's kind of number."""
    number: Number = bool(value) if dtype is bool_ else int(value) if dtype.is_int else float(value)
    return Constant(number, tensor(dtype, shape)).result


class Iota(Op, opname="prim.iota"):
    """start, start + step, ... : `size` numbers, rank 1."""

    size: Size
    dtype: DType
    start: Size = 0
    step: int = 1

    def infer(self) -> TensorType:
        return tensor(self.dtype, (self.size,))


class DimOf(Op, opname="prim.dim"):
    """The size of x along `axis`, as an i64 of rank 0."""

    x: Value
    axis: Axis

    def infer(self) -> TensorType:
        return tensor(i64, ())
