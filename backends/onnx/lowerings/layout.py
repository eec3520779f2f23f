"""How are reshapes, slices, gathers and their like said in ONNX, with sizes known only at run time?"""

from __future__ import annotations

from typing import Final

from irlab.backends.onnx.emitter import Emitter, Lowering
from irlab.dims import Size
from irlab.ir import Op
from irlab.ops import prim
from irlab.types import Shape

_END: Final = 2**63 - 1


def target_shape(e: Emitter, source: Shape, target: Shape) -> str:
    """The shape operand of Reshape: 0 copies the size of the same dimension, one -1 is worked out, else arithmetic."""
    known: list[int] = []
    unknown: list[int] = []
    for i, size in enumerate(target):
        if isinstance(size, int):
            known.append(size)
        elif i < len(source) and source[i] == size:
            known.append(0)
        else:
            known.append(-1)
            unknown.append(i)
    # A known size of 0 would read as "copy".
    if len(unknown) > 1 or any(size == 0 for size in target):
        return e.sizes.shape(target)
    return e.ints(*known)


def _reshape(op: prim.Reshape, e: Emitter) -> None:
    shape = target_shape(e, op.x.type.shape, op.shape)
    e.result(op, "Reshape", e[op.x], shape, allowzero=int(any(size == 0 for size in op.shape)))


def _transpose(op: prim.Transpose, e: Emitter) -> None:
    e.result(op, "Transpose", e[op.x], perm=op.perm)


def _expand(op: prim.Expand, e: Emitter) -> None:
    # A size that is there already may be asked for as 1, which broadcasts: fewer sizes to compute.
    source = (1,) * (len(op.shape) - op.x.type.rank) + op.x.type.shape
    wanted: tuple[Size, ...] = tuple(1 if a == b else b for a, b in zip(source, op.shape))
    e.result(op, "Expand", e[op.x], e.sizes.shape(wanted))


def _slice(op: prim.Slice, e: Emitter) -> None:
    whole = op.stop == op.x.type.shape[op.axis]
    stop = e.ints(_END) if whole else e.sizes.size(op.stop)
    e.result(op, "Slice", e[op.x], e.sizes.size(op.start), stop, e.ints(op.axis), e.ints(op.step))


def _concat(op: prim.Concat, e: Emitter) -> None:
    e.result(op, "Concat", *(e[x] for x in op.xs), axis=op.axis)


def _split(op: prim.Split, e: Emitter) -> None:
    e.result(op, "Split", e[op.x], e.sizes.shape(op.sizes), axis=op.axis)


def _pad(op: prim.Pad, e: Emitter) -> None:
    amounts = e.sizes.shape((*op.low, *op.high))
    e.result(op, "Pad", e[op.x], amounts, e.scalar(op.value, op.x.type), mode="constant")


def _gather(op: prim.Gather, e: Emitter) -> None:
    e.result(op, "Gather", e[op.x], e[op.indices], axis=op.axis)


def _gather_elements(op: prim.GatherElements, e: Emitter) -> None:
    e.result(op, "GatherElements", e[op.x], e[op.indices], axis=op.axis)


def _scatter(op: prim.Scatter, e: Emitter) -> None:
    e.result(op, "ScatterElements", e[op.x], e[op.indices], e[op.updates], axis=op.axis)


LOWERINGS: Final[dict[type[Op], Lowering]] = {
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
}
