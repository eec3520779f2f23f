"""How are constants, ranges and sizes as values said in TensorRT?"""

from __future__ import annotations

from typing import Final

from irlab.backends.tensorrt.emitter import Emitter, Lowering
from irlab.backends.tensorrt.library import ITensor, load
from irlab.backends.tensorrt.lowerings.layout import expanded
from irlab.backends.tensorrt.numbers import trt_type
from irlab.dims import Dim, Size
from irlab.ir import Op
from irlab.ops import prim
from irlab.types import i64


def _constant(op: prim.Constant, e: Emitter) -> None:
    number = e.number(op.value, op.type.dtype, op.type.rank)
    e.bind(op.result, expanded(e, number, (1,) * op.type.rank, op.type.shape))


def counted(e: Emitter, size: Size, start: Size = 0, step: int = 1) -> ITensor:
    """i64[size]: start, start + step ... as a linspace fill, from tensors where a size is known only at run time."""
    layer = e.add("fill", (size if isinstance(size, int) else 1,), load().FillOperation.LINSPACE, trt_type(i64))
    if isinstance(size, Dim):
        layer.set_input(0, e.sizes.size(size))
    layer.set_input(1, e.sizes.scalar(start))
    layer.set_input(2, e.ints(step))
    return layer.get_output(0)


def _iota(op: prim.Iota, e: Emitter) -> None:
    e.bind(op.result, e.cast(counted(e, op.size, op.start, op.step), op.dtype))


def _dim(op: prim.DimOf, e: Emitter) -> None:
    e.bind(op.result, e.sizes.scalar(op.x.type.shape[op.axis]))


LOWERINGS: Final[dict[type[Op], Lowering]] = {
    prim.Constant: _constant,
    prim.Iota: _iota,
    prim.DimOf: _dim,
}
