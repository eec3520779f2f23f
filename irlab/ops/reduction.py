"""Primitives that reduce or scan along axes."""

from __future__ import annotations

from ..dims import Size
from ..ir import Op, Value
from ..opdef import Axes, Axis
from ..types import DType, Shape, TensorType, bool_, i64, tensor
from .shapes import fail, require_float, require_numbers


class Reduce(Op):
    """A reduction over `axes`, which stay as size 1 if `keepdims`. No axes, no change; integers wrap."""

    x: Value
    axes: Axes
    keepdims: bool = True

    def result_dtype(self) -> DType:
        return require_numbers(self, self.x).dtype

    def infer(self) -> TensorType:
        shape = self.x.type.shape
        reduced = {len(shape) + axis for axis in self.axes}
        if self.keepdims:
            kept: Shape = tuple([1 if i in reduced else d for i, d in enumerate(shape)])
        else:
            kept = tuple([d for i, d in enumerate(shape) if i not in reduced])
        return tensor(self.result_dtype(), kept)


class Sum(Reduce, opname="prim.sum"):
    """The sum over `axes`."""


class Mean(Reduce, opname="prim.mean"):
    """The mean over `axes`."""

    def result_dtype(self) -> DType:
        return require_float(self, self.x).dtype


class Max(Reduce, opname="prim.max"):
    """The largest element over `axes`."""


class Min(Reduce, opname="prim.min"):
    """The smallest element over `axes`."""


class Prod(Reduce, opname="prim.prod"):
    """The product over `axes`."""


class Any(Reduce, opname="prim.any"):
    """Whether any element over `axes` is true."""

    def result_dtype(self) -> DType:
        return bool_


class All(Reduce, opname="prim.all"):
    """Whether all elements over `axes` are true."""

    def result_dtype(self) -> DType:
        return bool_


class ArgMax(Op, opname="prim.argmax"):
    """The index of the first largest element along `axis`, as i64."""

    x: Value
    axis: Axis
    keepdims: bool = False

    def infer(self) -> TensorType:
        shape = self.x.type.shape
        after = shape[len(shape) + self.axis + 1 :]
        return tensor(i64, (*shape[: self.axis], *((1,) if self.keepdims else ()), *after))


class CumSum(Op, opname="prim.cumsum"):
    """The running sum along `axis`, including the element itself."""

    x: Value
    axis: Axis

    def infer(self) -> TensorType:
        return tensor(require_numbers(self, self.x).dtype, self.x.type.shape)


class TopK(Op, opname="prim.topk"):
    """The k largest elements along `axis`, descending, and their i64 indices."""

    x: Value
    k: Size
    axis: Axis = -1

    def infer(self) -> tuple[TensorType, TensorType]:
        shape = list(self.x.type.shape)
        length = shape[self.axis]
        if isinstance(self.k, int) and not 0 <= self.k <= (length if isinstance(length, int) else self.k):
            raise fail(self, f"k = {self.k} is outside size {length}")
        shape[self.axis] = self.k
        return tensor(self.x.type.dtype, tuple(shape)), tensor(i64, tuple(shape))
