"""The tensor primitives on torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ir import Weight
from ..ops import prim
from ..ops.control import If
from .kernels import Table, Tensors, plain

if TYPE_CHECKING:
    from .program import Run


def _weight(op: Weight, run: Run) -> Tensor:
    return run.weight(op.symbol)


def _constant(op: prim.Constant, run: Run) -> Tensor:
    type = op.results[0].type
    one = torch.tensor(op.value, dtype=run.dtypes(type.dtype), device=run.device)
    return one.expand(run.shape(type.shape))


def _iota(op: prim.Iota, run: Run) -> Tensor:
    counted = torch.arange(run.sizes(op.size), device=run.device)
    return (counted * op.step + run.sizes(op.start)).to(run.dtypes(op.dtype))


def _dim(op: prim.DimOf, run: Run, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[op.axis], device=run.device)


def _div(op: prim.Div, run: Run, x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _cast(op: prim.Cast, run: Run, x: Tensor) -> Tensor:
    return x.to(run.dtypes(op.dtype))


def _reshape(op: prim.Reshape, run: Run, x: Tensor) -> Tensor:
    return x.reshape(run.shape(op.shape))


def _transpose(op: prim.Transpose, run: Run, x: Tensor) -> Tensor:
    return x.permute(op.perm)


def _expand(op: prim.Expand, run: Run, x: Tensor) -> Tensor:
    return x.expand(run.shape(op.shape))


def _slice(op: prim.Slice, run: Run, x: Tensor) -> Tensor:
    start, stop = run.sizes(op.start), run.sizes(op.stop)
    if not 0 <= start <= stop <= x.shape[op.axis]:
        raise IndexError(f"{start}:{stop} is outside size {x.shape[op.axis]}")
    return x.narrow(op.axis, start, stop - start) if op.step == 1 else _every(x, op.axis, start, stop, op.step)


def _every(x: Tensor, axis: int, start: int, stop: int, step: int) -> Tensor:
    return x.movedim(axis, 0)[start:stop:step].movedim(0, axis)


def _concat(op: prim.Concat, run: Run, *xs: Tensor) -> Tensor:
    return torch.cat(xs, op.axis)


def _split(op: prim.Split, run: Run, x: Tensor) -> Tensors:
    return tuple(torch.split(x, [run.sizes(n) for n in op.sizes], op.axis))


def _pad(op: prim.Pad, run: Run, x: Tensor) -> Tensor:
    amounts: list[int] = []
    for low, high in zip(reversed(op.low), reversed(op.high)):
        amounts += run.sizes(low), run.sizes(high)
    return F.pad(x, amounts, value=op.value)


def _gather(op: prim.Gather, run: Run, x: Tensor, indices: Tensor) -> Tensor:
    axis = x.dim() + op.axis
    flat = x.index_select(axis, indices.reshape(-1).long())
    return flat.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_elements(op: prim.GatherElements, run: Run, x: Tensor, indices: Tensor) -> Tensor:
    return torch.gather(x, op.axis, indices.long())


def _scatter(op: prim.Scatter, run: Run, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    return torch.scatter(x, op.axis, indices.long(), updates)


def _conv(op: prim.Conv, run: Run, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    no_padding = [0] * len(op.stride)
    return torch.convolution(x, weight, bias, op.stride, op.padding, op.dilation, False, no_padding, op.groups)


_MAX_POOLS: Final[dict[int, Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOLS: Final[dict[int, Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _max_pool(op: prim.MaxPool, run: Run, x: Tensor) -> Tensor:
    pooled: Tensor = _MAX_POOLS[len(op.kernel)](x, op.kernel, op.stride, op.padding, op.dilation)
    return pooled


def _avg_pool(op: prim.AvgPool, run: Run, x: Tensor) -> Tensor:
    pooled: Tensor = _AVG_POOLS[len(op.kernel)](x, op.kernel, op.stride, op.padding, False, op.count_padding)
    return pooled


def _sum(op: prim.Sum, run: Run, x: Tensor) -> Tensor:
    return torch.sum(x, op.axes, op.keepdims, dtype=x.dtype) if op.axes else x


def _mean(op: prim.Mean, run: Run, x: Tensor) -> Tensor:
    return torch.mean(x, op.axes, op.keepdims) if op.axes else x


def _max(op: prim.Max, run: Run, x: Tensor) -> Tensor:
    return torch.amax(x, op.axes, op.keepdims) if op.axes else x


def _min(op: prim.Min, run: Run, x: Tensor) -> Tensor:
    return torch.amin(x, op.axes, op.keepdims) if op.axes else x


def _prod(op: prim.Prod, run: Run, x: Tensor) -> Tensor:
    # One axis at a time, in rising order of negative axes: removing one would renumber those before it.
    for axis in op.axes:
        x = torch.prod(x, axis, keepdim=True, dtype=x.dtype)
    return x if op.keepdims else _drop(x, op.axes)


def _drop(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return torch.squeeze(x, axes) if axes else x


def _any(op: prim.Any, run: Run, x: Tensor) -> Tensor:
    return torch.any(x.bool(), op.axes, op.keepdims) if op.axes else x.bool()


def _all(op: prim.All, run: Run, x: Tensor) -> Tensor:
    return torch.all(x.bool(), op.axes, op.keepdims) if op.axes else x.bool()


def _argmax(op: prim.ArgMax, run: Run, x: Tensor) -> Tensor:
    return torch.argmax(x, op.axis, op.keepdims)


def _cumsum(op: prim.CumSum, run: Run, x: Tensor) -> Tensor:
    return torch.cumsum(x, op.axis, dtype=x.dtype)


def _topk(op: prim.TopK, run: Run, x: Tensor) -> Tensors:
    values, indices = torch.topk(x, run.sizes(op.k), op.axis)
    return values, indices


def _if(op: If, run: Run, condition: Tensor, *operands: Tensor) -> Tensors:
    return run.region(op.then_ if bool(condition) else op.else_, operands)


PRIM_KERNELS: Final[Table] = {
    Weight: _weight,
    If: _if,
    prim.Constant: _constant,
    prim.Iota: _iota,
    prim.DimOf: _dim,
    prim.Add: plain(torch.add),
    prim.Sub: plain(torch.sub),
    prim.Mul: plain(torch.mul),
    prim.Div: _div,
    prim.FloorDiv: plain(torch.floor_divide),
    prim.Mod: plain(torch.remainder),
    prim.Pow: plain(torch.pow),
    prim.Maximum: plain(torch.maximum),
    prim.Minimum: plain(torch.minimum),
    prim.Eq: plain(torch.eq),
    prim.Ne: plain(torch.ne),
    prim.Lt: plain(torch.lt),
    prim.Le: plain(torch.le),
    prim.Gt: plain(torch.gt),
    prim.Ge: plain(torch.ge),
    prim.And: plain(torch.bitwise_and),
    prim.Or: plain(torch.bitwise_or),
    prim.Xor: plain(torch.bitwise_xor),
    prim.Not: plain(torch.bitwise_not),
    prim.Neg: plain(torch.neg),
    prim.Abs: plain(torch.abs),
    prim.Sign: plain(torch.sign),
    prim.Relu: plain(torch.relu),
    prim.Exp: plain(torch.exp),
    prim.Log: plain(torch.log),
    prim.Sqrt: plain(torch.sqrt),
    prim.Rsqrt: plain(torch.rsqrt),
    prim.Reciprocal: plain(torch.reciprocal),
    prim.Sin: plain(torch.sin),
    prim.Cos: plain(torch.cos),
    prim.Tanh: plain(torch.tanh),
    prim.Erf: plain(torch.erf),
    prim.Sigmoid: plain(torch.sigmoid),
    prim.Floor: plain(torch.floor),
    prim.Ceil: plain(torch.ceil),
    prim.Round: plain(torch.round),
    prim.IsNan: plain(torch.isnan),
    prim.Where: plain(torch.where),
    prim.Cast: _cast,
    prim.Reshape: _reshape,
    prim.Transpose: _transpose,
    prim.Expand: _expand,
    prim.Slice: _slice,
    prim.Concat: _concat,
    prim.Split: _split,
    prim.Pad: _pad,
    prim.Gather: _gather,
    prim.GatherElements: _gather_elements,
    prim.Scatter: _scatter,
    prim.MatMul: plain(torch.matmul),
    prim.Conv: _conv,
    prim.MaxPool: _max_pool,
    prim.AvgPool: _avg_pool,
    prim.Sum: _sum,
    prim.Mean: _mean,
    prim.Max: _max,
    prim.Min: _min,
    prim.Prod: _prod,
    prim.Any: _any,
    prim.All: _all,
    prim.ArgMax: _argmax,
    prim.CumSum: _cumsum,
    prim.TopK: _topk,
}
