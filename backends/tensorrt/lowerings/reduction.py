"""How are reductions and scans said in TensorRT?"""

from __future__ import annotations

from typing import Final

from irlab.backends.tensorrt.emitter import Emitter, Lowering
from irlab.backends.tensorrt.library import load
from irlab.backends.tensorrt.numbers import trt_type
from irlab.dims import Dim
from irlab.ir import Op
from irlab.ops import prim
from irlab.types import bool_, i32, i64

_REDUCTIONS: Final[dict[type[Op], str]] = {
    prim.Sum: "SUM", prim.Mean: "AVG", prim.Max: "MAX", prim.Min: "MIN", prim.Prod: "PROD", prim.Any: "MAX",
    prim.All: "MIN",
}  # fmt: skip


def axes_mask(axes: tuple[int, ...], rank: int) -> int:
    """Axes (negative) as the bits that TensorRT takes."""
    return sum(1 << (axis + rank) for axis in axes)


def _reduce(op: prim.Reduce, e: Emitter) -> None:
    if not op.axes:
        e.bind(op.result, e.cast(e[op.x], op.result.type.dtype))
        return
    x = e[op.x]
    truth = op.result.type.dtype is bool_
    if truth:
        x = e.cast(x if op.x.type.dtype is bool_ else e.cast(x, bool_), i32)
    operation = getattr(load().ReduceOperation, _REDUCTIONS[type(op)])
    y = e.tensor("reduce", x, operation, axes_mask(op.axes, op.x.type.rank), op.keepdims)
    e.bind(op.result, e.cast(y, bool_) if truth else y)


def _topk(op: prim.TopK, e: Emitter) -> None:
    rank = op.x.type.rank
    known = op.k if isinstance(op.k, int) else 1
    layer = e.add("topk", e[op.x], load().TopKOperation.MAX, known, axes_mask((op.axis,), rank), trt_type(i64))
    if isinstance(op.k, Dim):
        layer.set_input(1, e.sizes.scalar(op.k))
    for i, value in enumerate(op.results):
        e.bind(value, layer.get_output(i))


def _argmax(op: prim.ArgMax, e: Emitter) -> None:
    rank = op.x.type.rank
    # TensorRT looks for the largest of two dimensions or more.
    lifted = rank == 1
    x = e.unsqueezed(e[op.x], range(1)) if lifted else e[op.x]
    layer = e.add("topk", x, load().TopKOperation.MAX, 1, axes_mask((op.axis,), rank + lifted), trt_type(i64))
    y = layer.get_output(1)
    drop = [0] * lifted + ([] if op.keepdims else [op.axis + rank + lifted])
    e.bind(op.result, e.tensor("squeeze", y, e.ints(*drop)) if drop else y)


def _cumsum(op: prim.CumSum, e: Emitter) -> None:
    axis = e.number(op.axis + op.x.type.rank, i64)
    e.result(op, "cumulative", e[op.x], axis, load().CumulativeOperation.SUM, False, False)


LOWERINGS: Final[dict[type[Op], Lowering]] = {
    **dict.fromkeys(_REDUCTIONS, _reduce),
    prim.TopK: _topk,
    prim.ArgMax: _argmax,
    prim.CumSum: _cumsum,
}
