"""How are reshapes, slices, gathers and their like said in TensorRT, with sizes known only at run time?"""

from __future__ import annotations

from typing import Final

from irlab.backends.tensorrt.emitter import Emitter, Lowering
from irlab.backends.tensorrt.library import ITensor, load
from irlab.dims import Dim, Size
from irlab.ir import Op
from irlab.ops import prim
from irlab.types import Shape, bool_, i32


def reshaped(e: Emitter, x: ITensor, source: Shape, target: Shape) -> ITensor:
    """`x` in the shape `target`: 0 copies the size of the same dimension, one -1 is worked out, else arithmetic."""
    copied = [i < len(source) and source[i] is d for i, d in enumerate(target)]
    unknown = [i for i, d in enumerate(target) if isinstance(d, Dim) and not copied[i]]
    layer = e.add("shuffle", x)
    if len(unknown) > 1 or any(d == 0 for d in target):
        layer.zero_is_placeholder = False
        layer.set_input(1, e.sizes.shape(target))
    else:
        layer.reshape_dims = tuple(d if isinstance(d, int) else 0 if copied[i] else -1 for i, d in enumerate(target))
    return layer.get_output(0)


def expanded(e: Emitter, x: ITensor, source: Shape, target: Shape) -> ITensor:
    """`x` of shape `source` broadcast to `target`, by a slice that stays in place where a size is 1."""
    if source == target:
        return x
    rank = len(target)
    source = (1,) * (rank - len(source)) + source
    x = e.unsqueezed(x, range(rank - len(x.shape)))
    strides = tuple(int(a == b) for a, b in zip(source, target))
    return sliced(e, x, (0,) * rank, target, strides)


def sliced(e: Emitter, x: ITensor, start: tuple[Size, ...], sizes: tuple[Size, ...], steps: tuple[int, ...]) -> ITensor:
    """`sizes` elements of `x` from `start` on, in `steps`."""
    layer = e.add("slice", x, *(tuple(d if isinstance(d, int) else 0 for d in v) for v in (start, sizes)), steps)
    for slot, values in ((1, start), (2, sizes)):
        if any(isinstance(d, Dim) for d in values):
            layer.set_input(slot, e.sizes.shape(values))
    return layer.get_output(0)


def _reshape(op: prim.Reshape, e: Emitter) -> None:
    e.bind(op.result, reshaped(e, e[op.x], op.x.type.shape, op.shape))


def _transpose(op: prim.Transpose, e: Emitter) -> None:
    layer = e.add("shuffle", e[op.x])
    layer.first_transpose = load().Permutation(op.perm) if hasattr(load(), "Permutation") else op.perm
    e.bind(op.result, layer.get_output(0))


def _expand(op: prim.Expand, e: Emitter) -> None:
    e.bind(op.result, expanded(e, e[op.x], op.x.type.shape, op.shape))


def _slice(op: prim.Slice, e: Emitter) -> None:
    rank, at = op.x.type.rank, op.axis + op.x.type.rank
    start = tuple(op.start if i == at else 0 for i in range(rank))
    steps = tuple(op.step if i == at else 1 for i in range(rank))
    e.bind(op.result, sliced(e, e[op.x], start, op.result.type.shape, steps))


def _split(op: prim.Split, e: Emitter) -> None:
    rank, at = op.x.type.rank, op.axis + op.x.type.rank
    begin: Size = 0
    for value, size in zip(op.results, op.sizes):
        start = tuple(begin if i == at else 0 for i in range(rank))
        e.bind(value, sliced(e, e[op.x], start, value.type.shape, (1,) * rank))
        begin = begin + size


def joined(e: Emitter, tensors: list[ITensor], axis: int) -> ITensor:
    """Tensors one after the other along `axis`, counted from 0."""
    layer = e.add("concatenation", tensors)
    layer.axis = axis
    return layer.get_output(0)


def _concat(op: prim.Concat, e: Emitter) -> None:
    tensors = [e[x] for x in op.xs]
    at = op.axis + op.result.type.rank
    if op.result.type.dtype is bool_:
        e.bind(op.result, e.cast(joined(e, [e.cast(t, i32) for t in tensors], at), bool_))
    else:
        e.bind(op.result, joined(e, tensors, at))


def _pad(op: prim.Pad, e: Emitter) -> None:
    """A slice that begins before the tensor and fills what lies outside."""
    rank = op.x.type.rank
    start = tuple(-d for d in op.low)
    layer = e.add("slice", e[op.x], (0,) * rank, (0,) * rank, (1,) * rank)
    layer.mode = load().SampleMode.FILL
    layer.set_input(1, e.sizes.shape(start))
    layer.set_input(2, e.sizes.shape(op.result.type.shape))
    layer.set_input(4, e.number(op.value, op.x.type.dtype))
    e.bind(op.result, layer.get_output(0))


def _gather(op: prim.Gather, e: Emitter) -> None:
    e.result(op, "gather", e[op.x], e[op.indices], op.axis + op.x.type.rank)


def _gather_elements(op: prim.GatherElements, e: Emitter) -> None:
    layer = e.add("gather_v2", e[op.x], e[op.indices], load().GatherMode.ELEMENT)
    layer.axis = op.axis + op.x.type.rank
    e.bind(op.result, layer.get_output(0))


def _scatter(op: prim.Scatter, e: Emitter) -> None:
    layer = e.add("scatter", e[op.x], e[op.indices], e[op.updates], load().ScatterMode.ELEMENT)
    layer.axis = op.axis + op.x.type.rank
    e.bind(op.result, layer.get_output(0))


LOWERINGS: Final[dict[type[Op], Lowering]] = {
    prim.Reshape: _reshape,
    prim.Transpose: _transpose,
    prim.Expand: _expand,
    prim.Slice: _slice,
    prim.Split: _split,
    prim.Concat: _concat,
    prim.Pad: _pad,
    prim.Gather: _gather,
    prim.GatherElements: _gather_elements,
    prim.Scatter: _scatter,
}
