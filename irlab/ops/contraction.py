"""Primitives that contract or slide: matmul, convolution, pooling."""

from __future__ import annotations

from ..dims import floordiv, mod
from ..ir import Op, Value
from ..types import Shape, TensorType, tensor
from .shapes import broadcast_shapes, fail, require, require_float, require_numbers, same_dtype


class MatMul(Op, opname="prim.matmul"):
    """Batched matrix product x[..., m, k] @ y[..., k, n]; leading dimensions broadcast."""

    x: Value
    y: Value

    def infer(self) -> TensorType:
        a, b = self.x.type.shape, self.y.type.shape
        require(self, len(a) >= 2 and len(b) >= 2, "operands need two dimensions or more")
        require(self, a[-1] == b[-2], f"inner sizes {a[-1]} and {b[-2]} differ")
        require_numbers(self, self.x)
        batch = broadcast_shapes(self, a[:-2], b[:-2])
        return tensor(same_dtype(self, self.operands), (*batch, a[-2], b[-1]))


def _window(
    op: Op,
    sizes: Shape,
    kernel: Shape,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Shape:
    """The output sizes of a window of size `kernel` sliding over `sizes`."""
    ranks = {len(t) for t in (sizes, kernel, stride, padding, dilation)}
    require(op, len(ranks) == 1, "needs one entry per spatial dimension")
    require(op, min(*stride, *dilation, 1) == 1 and min(*padding, 0) == 0, "stride, dilation or padding is too small")
    for size, k, pad, dilate in zip(sizes, kernel, padding, dilation):
        if isinstance(size, int) and isinstance(k, int) and not 0 < dilate * (k - 1) + 1 <= size + 2 * pad:
            raise fail(op, f"a window of {k} does not fit size {size}")
    windows = zip(sizes, kernel, stride, padding, dilation)
    return tuple([floordiv(n + 2 * p - d * (k - 1) - 1, s) + 1 for n, k, s, p, d in windows])


class Conv(Op, opname="prim.conv"):
    """Cross-correlation: x[batch, in, spatial...] with weight[out, in / groups, kernel...], bias[out]."""

    x: Value
    weight: Value
    bias: Value | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def infer(self) -> TensorType:
        x, w = self.x.type, self.weight.type
        require(self, x.rank == w.rank >= 3, "x and weight need one rank, 3 or more")
        require(self, x.shape[1] == w.shape[1] * self.groups, f"{x.shape[1]} channels do not fit the weight")
        require(self, self.groups >= 1 and mod(w.shape[0], self.groups) == 0, "groups must divide the output channels")
        if self.bias is not None:
            require(self, self.bias.type.shape == w.shape[:1], "the bias must be [out]")
        spatial = _window(self, x.shape[2:], w.shape[2:], self.stride, self.padding, self.dilation)
        return tensor(same_dtype(self, self.operands), (x.shape[0], w.shape[0], *spatial))


class MaxPool(Op, opname="prim.max_pool"):
    """The largest element of each window of x[batch, channels, spatial...]; padding never wins."""

    x: Value
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def infer(self) -> TensorType:
        x = require_float(self, self.x)
        spatial = _window(self, x.shape[2:], self.kernel, self.stride, self.padding, self.dilation)
        require(self, all(2 * p <= k for p, k in zip(self.padding, self.kernel)), "padding exceeds half the kernel")
        return tensor(x.dtype, (*x.shape[:2], *spatial))


class AvgPool(Op, opname="prim.avg_pool"):
    """The mean of each window of x[batch, channels, spatial...]; padding counts as zeros if `count_padding`."""

    x: Value
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    count_padding: bool = True

    def infer(self) -> TensorType:
        x = self.x.type
        spatial = _window(self, x.shape[2:], self.kernel, self.stride, self.padding, (1,) * len(self.kernel))
        require(self, all(2 * p <= k for p, k in zip(self.padding, self.kernel)), "padding exceeds half the kernel")
        return tensor(require_float(self, self.x).dtype, (*x.shape[:2], *spatial))
