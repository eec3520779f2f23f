"""Primitives that move elements: reshape, transpose, slice, concat, pad, gather, scatter."""

from __future__ import annotations

from ..dims import Dim, Size, floordiv, product
from ..ir import Op, Value
from ..opdef import Axis
from ..types import Shape, TensorType, tensor
from .shapes import broadcast_shapes, fail, require, same_dtype


class Reshape(Op, opname="prim.reshape"):
    """The same elements, in row-major order, in another shape."""

    x: Value
    shape: Shape

    def infer(self) -> TensorType:
        if product(self.shape) != self.x.type.size:
            sizes = ", ".join(map(str, self.shape))
            raise fail(self, f"{self.x.type.size} elements do not fill [{sizes}]")
        return tensor(self.x.type.dtype, self.shape)


class Transpose(Op, opname="prim.transpose"):
    """Dimensions reordered: dimension i of the result is dimension perm[i] of x."""

    x: Value
    perm: tuple[int, ...]

    def canonicalise_attributes(self) -> None:
        rank = len(self.perm)
        self.perm = tuple([p + rank if p < 0 else p for p in self.perm])

    def infer(self) -> TensorType:
        shape = self.x.type.shape
        require(self, sorted(self.perm) == list(range(len(shape))), f"{self.perm} is no permutation of the dimensions")
        return tensor(self.x.type.dtype, tuple([shape[p] for p in self.perm]))


class Expand(Op, opname="prim.expand"):
    """x broadcast to `shape`."""

    x: Value
    shape: Shape

    def infer(self) -> TensorType:
        require(self, broadcast_shapes(self, self.x.type.shape, self.shape) == self.shape, "the shape is too small")
        return tensor(self.x.type.dtype, self.shape)


class Slice(Op, opname="prim.slice"):
    """x[start:stop:step] along `axis`. Bounds are sizes in 0..length, `stop - start` a multiple of `step` or known."""

    x: Value
    axis: Axis
    start: Size
    stop: Size
    step: int = 1

    def infer(self) -> TensorType:
        shape = list(self.x.type.shape)
        length = shape[self.axis]
        require(self, self.step >= 1, f"step {self.step} is not positive")
        known = [n for n in (self.start, self.stop) if not isinstance(n, Dim)]
        if any(n < 0 for n in known) or (not isinstance(length, Dim) and any(n > length for n in known)):
            raise fail(self, f"{self.start}:{self.stop} is outside size {length}")
        extent = self.stop - self.start
        require(self, isinstance(extent, Dim) or extent >= 0, f"{self.start}:{self.stop} is empty backwards")
        shape[self.axis] = extent if self.step == 1 else floordiv(extent + self.step - 1, self.step)
        return tensor(self.x.type.dtype, tuple(shape))


class Concat(Op, opname="prim.concat"):
    """The operands one after the other along `axis`."""

    xs: tuple[Value, ...]
    axis: Axis

    def infer(self) -> TensorType:
        dtype = same_dtype(self, self.xs)
        shape = list(self.xs[0].type.shape)
        for x in self.xs[1:]:
            other = list(x.type.shape)
            require(self, len(other) == len(shape), "operands differ in rank")
            total = shape[self.axis] + other[self.axis]
            shape[self.axis] = other[self.axis] = total
            require(self, shape == other, f"operands differ off axis {self.axis}")
        return tensor(dtype, tuple(shape))


class Split(Op, opname="prim.split"):
    """x cut along `axis` into pieces of the given `sizes`."""

    x: Value
    sizes: tuple[Size, ...]
    axis: Axis

    def infer(self) -> tuple[TensorType, ...]:
        shape = self.x.type.shape
        total: Size = 0
        for size in self.sizes:
            total = total + size
        require(self, all(isinstance(n, Dim) or n >= 0 for n in self.sizes), "a piece is negative")
        require(self, total == shape[self.axis], f"the pieces add up to {total}, not {shape[self.axis]}")
        before, after = shape[: self.axis], shape[len(shape) + self.axis + 1 :]
        return tuple([tensor(self.x.type.dtype, (*before, size, *after)) for size in self.sizes])


class Pad(Op, opname="prim.pad"):
    """x with `low[i]` and `high[i]` elements of `value` added before and after dimension i."""

    x: Value
    low: tuple[Size, ...]
    high: tuple[Size, ...]
    value: float = 0.0

    def infer(self) -> TensorType:
        shape = self.x.type.shape
        require(self, len(self.low) == len(self.high) == len(shape), "needs one amount per dimension")
        require(self, all(isinstance(n, Dim) or n >= 0 for n in (*self.low, *self.high)), "an amount is negative")
        return tensor(self.x.type.dtype, tuple([a + d + b for a, d, b in zip(self.low, shape, self.high)]))


class Gather(Op, opname="prim.gather"):
    """Slices of x along `axis`, one for each index (ONNX Gather, torch index_select with any index shape).
    Indices count from 0 and lie inside the axis, here and in `gather_elements` and `scatter`."""

    x: Value
    indices: Value
    axis: Axis = 0

    def infer(self) -> TensorType:
        require(self, self.indices.type.dtype.is_int, "indices must be integers")
        shape = self.x.type.shape
        after = shape[len(shape) + self.axis + 1 :]
        return tensor(self.x.type.dtype, (*shape[: self.axis], *self.indices.type.shape, *after))


def _require_inside(op: Op, indices: Shape, x: Shape, axis: int) -> None:
    """Off `axis`, the known sizes of `indices` do not exceed those of x."""
    for i, (a, b) in enumerate(zip(indices, x)):
        if i - len(x) != axis and isinstance(a, int) and isinstance(b, int) and a > b:
            raise fail(op, f"indices of size {a} exceed size {b} off the axis")


class GatherElements(Op, opname="prim.gather_elements"):
    """out[i, j] = x[indices[i, j], j] for axis 0 (torch.gather, ONNX GatherElements)."""

    x: Value
    indices: Value
    axis: Axis

    def infer(self) -> TensorType:
        require(self, self.indices.type.dtype.is_int, "indices must be integers")
        require(self, self.indices.type.rank == self.x.type.rank, "indices must have the rank of x")
        _require_inside(self, self.indices.type.shape, self.x.type.shape, self.axis)
        return tensor(self.x.type.dtype, self.indices.type.shape)


class Scatter(Op, opname="prim.scatter"):
    """A copy of x with x[indices[i, j], j] = updates[i, j] for axis 0 (torch.scatter, ONNX ScatterElements).
    No two updates meet."""

    x: Value
    indices: Value
    updates: Value
    axis: Axis

    def infer(self) -> TensorType:
        require(self, self.indices.type.dtype.is_int, "indices must be integers")
        require(self, self.indices.type.shape == self.updates.type.shape, "one update per index")
        require(self, self.indices.type.rank == self.x.type.rank, "indices must have the rank of x")
        _require_inside(self, self.indices.type.shape, self.x.type.shape, self.axis)
        return tensor(same_dtype(self, (self.x, self.updates)), self.x.type.shape)
