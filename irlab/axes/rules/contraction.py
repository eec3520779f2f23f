"""Axes through ops that sum, slide or scan: products, convolutions, reductions."""

from __future__ import annotations

from ...dims import floordiv
from ...ops import prim
from ...ops.reduction import Reduce
from ..axis import Axis, fix, mark, mix, product_of, unify
from .base import CONVOLVED, At, Axes, broadcast, fresh, rule, with_axis


@rule(prim.MatMul)
def _matmul(op: prim.MatMul, at: At) -> list[Axes]:
    x, y = at(op.x), at(op.y)
    unify(x[-1], y[-2])
    batch = broadcast(op.results[0].type.shape[:-2], [x[:-2], y[:-2]])
    return [(*batch, x[-2], y[-1])]


@rule(prim.Conv)
def _conv(op: prim.Conv, at: At) -> list[Axes]:
    x, weight = at(op.x), at(op.weight)
    channels, out, inner = x[1], weight[0], weight[1]
    if op.groups == 1:
        unify(channels, inner)
    else:
        groups = Axis(op.groups)
        unify(channels, product_of((groups, inner)))
        unify(out, product_of((groups, Axis(floordiv(out.size, op.groups)))))
    for axis in (channels, out):
        mark(axis, CONVOLVED)
    for axis in weight[2:]:
        fix(axis, "the window of a convolution")
    for axis in x[2:]:
        fix(axis, "convolved over")
    if op.bias is not None:
        unify(at(op.bias)[0], out)
    return [(x[0], out, *fresh(op.results[0].type.shape[2:]))]


@rule(prim.MaxPool, prim.AvgPool)
def _pool(op: prim.MaxPool | prim.AvgPool, at: At) -> list[Axes]:
    x = at(op.x)
    for axis in x[2:]:
        fix(axis, "pooled over")
    return [(*x[:2], *fresh(op.results[0].type.shape[2:]))]


@rule(Reduce)
def _reduce(op: Reduce, at: At) -> list[Axes]:
    axes = at(op.x)
    gone = {len(axes) + axis for axis in op.axes}
    if not isinstance(op, prim.Sum):
        for i in gone:
            mix(axes[i], f"{op.opname} over it")
    if op.keepdims:
        return [tuple(Axis(1) if i in gone else axis for i, axis in enumerate(axes))]
    return [tuple(axis for i, axis in enumerate(axes) if i not in gone)]


@rule(prim.ArgMax)
def _argmax(op: prim.ArgMax, at: At) -> list[Axes]:
    axes = at(op.x)
    fix(axes[op.axis], "argmax gives its indices")
    position = len(axes) + op.axis
    return [(*axes[:position], *((Axis(1),) if op.keepdims else ()), *axes[position + 1 :])]


@rule(prim.CumSum)
def _cumsum(op: prim.CumSum, at: At) -> list[Axes]:
    fix(at(op.x)[op.axis], "summed in order")
    return [at(op.x)]


@rule(prim.TopK)
def _topk(op: prim.TopK, at: At) -> list[Axes]:
    axes = at(op.x)
    fix(axes[op.axis], "topk gives its indices")
    kept = with_axis(axes, op.axis, Axis(op.k))
    return [kept, kept]
