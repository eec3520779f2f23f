"""How are convolution and pooling said in TensorRT? With at least two spatial dimensions."""

from __future__ import annotations

from typing import Any, Final

from irlab.backends.tensorrt.emitter import Emitter, Lowering
from irlab.backends.tensorrt.library import ILayer, ITensor, load
from irlab.backends.tensorrt.lowerings.arithmetic import elementwise
from irlab.ir import Op
from irlab.ops import prim


def _lifted(e: Emitter, x: ITensor, rank: int) -> ITensor:
    """A tensor of one spatial dimension with a second of size 1 before it."""
    return e.unsqueezed(x, range(2, 3)) if rank == 3 else x


def _window(values: tuple[int, ...], fill: int) -> tuple[int, ...]:
    return (fill, *values) if len(values) == 1 else tuple(values)


def _finish(op: Any, e: Emitter, layer: ILayer, y: ITensor | None = None) -> None:
    y = layer.get_output(0) if y is None else y
    e.bind(op.result, e.tensor("squeeze", y, e.ints(2)) if op.x.type.rank == 3 else y)


def _conv(op: prim.Conv, e: Emitter) -> None:
    """The kernel is an input of the layer, so that one array serves every reader; a bias is added after."""
    library, rank = load(), op.x.type.rank
    out, *kernel = op.weight.type.shape[:1] + op.weight.type.shape[2:]
    if not isinstance(out, int) or not all(isinstance(k, int) for k in kernel):
        raise e.refused("convolution", "a kernel of symbolic size")
    sizes = _window(tuple(k for k in kernel if isinstance(k, int)), 1)
    x = _lifted(e, e[op.x], rank)
    layer = e.add("convolution_nd", x, out, sizes, library.Weights(x.dtype))
    layer.set_input(1, _lifted(e, e[op.weight], rank))
    layer.stride_nd, layer.padding_nd = _window(op.stride, 1), _window(op.padding, 0)
    layer.dilation_nd, layer.num_groups = _window(op.dilation, 1), op.groups
    if op.bias is None:
        _finish(op, e, layer)
        return
    column = e.tensor("unsqueeze", e[op.bias], e.ints(0, *range(2, len(sizes) + 2)))
    _finish(op, e, layer, elementwise(e, "SUM", layer.get_output(0), column))


def _pool(op: prim.MaxPool | prim.AvgPool, e: Emitter) -> None:
    library = load()
    kind = library.PoolingType.MAX if isinstance(op, prim.MaxPool) else library.PoolingType.AVERAGE
    kernel = tuple(k for k in op.kernel if isinstance(k, int))
    layer = e.add("pooling_nd", _lifted(e, e[op.x], op.x.type.rank), kind, _window(kernel, 1))
    layer.stride_nd, layer.padding_nd = _window(op.stride, 1), _window(op.padding, 0)
    if isinstance(op, prim.AvgPool):
        layer.average_count_excludes_padding = not op.count_padding
    _finish(op, e, layer)


LOWERINGS: Final[dict[type[Op], Lowering]] = {
    prim.Conv: _conv,
    prim.MaxPool: _pool,
    prim.AvgPool: _pool,
}
