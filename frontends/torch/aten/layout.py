"""ATen ops that move elements. Target shapes are those torch has inferred, so that -1 needs no arithmetic here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irlab import dims
from irlab.dims import Dim, Size
from irlab.ir import Value
from irlab.ops import prim
from irlab.types import Shape, i64

if TYPE_CHECKING:
    from irlab.frontends.torch.lower import Lowered, Lowering, Site

_TO_THE_END = 1 << 62
"""Slices without an end reach to the largest i64."""


def _reshape(site: Site, x: Value, *_: object, **__: object) -> Lowered:
    """view, flatten, squeeze, unsqueeze ...: the same elements in the shape that torch says."""
    return _reshaped(x, site.type.shape)


def _reshaped(x: Value, shape: Shape) -> Value:
    return x if x.type.shape == shape else prim.reshape(x, shape)


def _expand(site: Site, x: Value, *_: object, **__: object) -> Lowered:
    return x if x.type.shape == site.type.shape else prim.expand(x, site.type.shape)


def _permuted(x: Value, perm: tuple[int, ...]) -> Value:
    rank = x.type.rank
    positive = tuple([p % rank for p in perm])
    return x if positive == tuple(range(rank)) else prim.transpose(x, positive)


def _permute(site: Site, x: Value, perm: tuple[int, ...]) -> Lowered:
    return _permuted(x, perm)


def _swap(x: Value, a: int, b: int) -> Value:
    order = list(range(x.type.rank))
    order[a], order[b] = order[b], order[a]
    return _permuted(x, tuple(order))


def _transpose(site: Site, x: Value, a: int, b: int) -> Lowered:
    return _swap(x, a, b) if x.type.rank else x


def _matrix_transpose(site: Site, x: Value) -> Lowered:
    return _swap(x, -1, -2) if x.type.rank >= 2 else x


def _movedim(site: Site, x: Value, source: int | tuple[int, ...], destination: int | tuple[int, ...]) -> Lowered:
    rank = x.type.rank
    sources = [s % rank for s in ((source,) if isinstance(source, int) else source)]
    places = [d % rank for d in ((destination,) if isinstance(destination, int) else destination)]
    rest = iter([i for i in range(rank) if i not in sources])
    origin = dict(zip(places, sources))
    return _permuted(x, tuple([origin[i] if i in origin else next(rest) for i in range(rank)]))


def _bound(bound: Size | None, length: Size, default: Size) -> Size | None:
    """A slice bound as a size in 0..length, or None where that cannot be said."""
    if bound is None:
        return default
    if isinstance(bound, int) and bound < 0:
        bound = bound + length
        if isinstance(bound, int):
            return max(bound, 0)
    if isinstance(bound, int):
        if bound >= _TO_THE_END:
            return length
        return min(bound, length) if isinstance(length, int) else bound
    return bound


def _slice(
    site: Site, x: Value, dim: int = 0, start: Size | None = None, end: Size | None = None, step: int = 1
) -> Lowered:
    length = x.type.shape[dim]
    low, high = _bound(start, length, 0), _bound(end, length, length)
    if low is None or high is None:
        return None
    if low == 0 and high == length and step == 1:
        return x
    return prim.slice(x, dim, low, high, step)


def _select(site: Site, x: Value, dim: int, index: Size) -> Lowered:
    length = x.type.shape[dim]
    at = index + length if isinstance(index, int) and index < 0 else index
    return prim.reshape(prim.slice(x, dim, at, at + 1), site.type.shape)


def _narrow(site: Site, x: Value, dim: int, start: Size, length: Size) -> Lowered:
    return _slice(site, x, dim, start, start + length)


def _cat(site: Site, xs: tuple[Value, ...], dim: int = 0) -> Lowered:
    # torch lets a tensor of shape [0] stand among others of any rank.
    kept = [site.cast(x) for x in xs if x.type.shape != (0,) or site.type.rank == 1]
    return kept[0] if len(kept) == 1 else prim.concat(tuple(kept), dim)


def _stack(site: Site, xs: tuple[Value, ...], dim: int = 0) -> Lowered:
    shape = list(site.type.shape)
    shape[dim] = 1
    return prim.concat(tuple([prim.reshape(site.cast(x), tuple(shape)) for x in xs]), dim)


def _pieces(site: Site, x: Value, dim: int) -> Lowered:
    """Pieces along `dim` of the sizes that torch says."""
    return tuple(prim.split(x, tuple([t.shape[dim] for t in site.types]), dim))


def _split(site: Site, x: Value, sizes: object, dim: int = 0) -> Lowered:
    return _pieces(site, x, dim)


def _unbind(site: Site, x: Value, dim: int = 0) -> Lowered:
    pieces = prim.split(x, (1,) * len(site.types), dim)
    return tuple([prim.reshape(piece, t.shape) for piece, t in zip(pieces, site.types)])


def _pad(site: Site, x: Value, pad: tuple[Size, ...], mode: object = "constant", value: object = None) -> Lowered:
    """pad(x, amounts, "constant", value): pairs (before, after) from the last dimension on."""
    if mode != "constant" or any(isinstance(p, int) and p < 0 for p in pad):
        return None
    low: list[Size] = [0] * x.type.rank
    high: list[Size] = [0] * x.type.rank
    for i in range(len(pad) // 2):
        low[-1 - i], high[-1 - i] = pad[2 * i], pad[2 * i + 1]
    return prim.pad(x, tuple(low), tuple(high), float(value or 0))  # type: ignore[arg-type]


def _constant_pad(site: Site, x: Value, pad: tuple[Size, ...], value: float = 0) -> Lowered:
    return _pad(site, x, pad, "constant", value)


def _repeat(site: Site, x: Value, repeats: tuple[Size, ...]) -> Lowered:
    """Tiles: each dimension becomes (repeat, size), which is then merged."""
    added = len(repeats) - x.type.rank
    shape = (1,) * added + x.type.shape
    apart: list[Size] = []
    spread: list[Size] = []
    for size, repeat in zip(shape, repeats):
        apart += [1, size]
        spread += [repeat, size]
    return _reshaped(prim.expand(_reshaped(x, tuple(apart)), tuple(spread)), site.type.shape)


def _repeat_interleave(
    site: Site, x: Value, repeats: object, dim: int | None = None, *, output_size: object = None
) -> Lowered:
    if not isinstance(repeats, (int, Dim)) or dim is None:
        return None
    shape = x.type.shape
    at = dim % x.type.rank + 1
    apart, spread = (*shape[:at], 1, *shape[at:]), (*shape[:at], repeats, *shape[at:])
    return _reshaped(prim.expand(_reshaped(x, apart), spread), site.type.shape)


def _flip(site: Site, x: Value, axes: tuple[int, ...]) -> Lowered:
    for axis in axes:
        length = x.type.shape[axis]
        x = prim.gather(x, prim.iota(length, i64, length - 1, -1), axis)
    return x


def _roll(site: Site, x: Value, shifts: tuple[Size, ...], axes: tuple[int, ...] = ()) -> Lowered:
    if len(axes) != len(shifts):
        return None
    for shift, axis in zip(shifts, axes):
        length = x.type.shape[axis]
        cut = dims.mod(length - shift, length)
        if cut != 0:
            x = prim.concat((prim.slice(x, axis, cut, length), prim.slice(x, axis, 0, cut)), axis)
    return x


def _triangle(upper: bool) -> Lowering:
    def lower(site: Site, x: Value, diagonal: int = 0) -> Lowered:
        rows, columns = x.type.shape[-2:]
        row = prim.reshape(prim.iota(rows, i64, diagonal), (rows, 1))
        column = prim.reshape(prim.iota(columns, i64), (1, columns))
        kept = prim.ge(column, row) if upper else prim.le(column, row)
        return prim.where(kept, x, site.value(0))

    return lower


def _gather(site: Site, x: Value, dim: int, index: Value, *, sparse_grad: bool = False) -> Lowered:
    return prim.gather_elements(x, index, dim)


def _index_select(site: Site, x: Value, dim: int, index: Value) -> Lowered:
    return prim.gather(x, index, dim)


def _counts_from_zero(index: Value) -> bool:
    """Whether an index is seen to be a range from 0 on, however it was reshaped."""
    op = index.op
    while isinstance(op, (prim.Reshape, prim.Expand, prim.Cast)):
        op = op.x.op
    return isinstance(op, prim.Iota) and op.start == 0 and op.step > 0


def _from_front(site: Site, index: Value, length: Size) -> Value:
    """An i64 index with the negative ones, which torch counts from the end, counted from the front."""
    index = site.cast(index, i64)
    if _counts_from_zero(index):
        return index
    return prim.where(prim.lt(index, site.value(0, i64)), prim.add(index, site.value(length, i64)), index)


def _index(site: Site, x: Value, indices: tuple[Value | None, ...]) -> Lowered:
    """x[:, i, j]: integer tensors at neighbouring dimensions, which are merged and gathered from."""
    at = [axis for axis, index in enumerate(indices) if index is not None]
    if not at or at != list(range(at[0], at[-1] + 1)):
        return None
    merged: Value | None = None
    for axis in at:
        index = indices[axis]
        if index is None or not index.type.dtype.is_int:
            return None
        index = _from_front(site, index, x.type.shape[axis])
        merged = index if merged is None else prim.add(prim.mul(merged, site.value(x.type.shape[axis], i64)), index)
    assert merged is not None
    shape = x.type.shape
    flat = (*shape[: at[0]], dims.product(shape[at[0] : at[-1] + 1]), *shape[at[-1] + 1 :])
    return prim.gather(_reshaped(x, flat), merged, at[0])


def _scatter(site: Site, x: Value, dim: int, index: Value, source: object) -> Lowered:
    if isinstance(source, Value):
        if source.type.shape != index.type.shape:
            return None
        return prim.scatter(x, index, source, dim)
    return prim.scatter(x, index, prim.expand(site.value(source), index.type.shape), dim)


TABLE: dict[str, Lowering] = {
    **dict.fromkeys(
        (
            "aten.view",
            "aten.reshape",
            "aten._unsafe_view",
            "aten._reshape_copy",
            "aten.view_as",
            "aten.reshape_as",
            "aten.flatten",
            "aten.unflatten",
            "aten.squeeze",
            "aten.unsqueeze",
        ),
        _reshape,
    ),
    "aten.view.dtype": lambda site, *_: None,  # the bits under another dtype
    **dict.fromkeys(("aten.expand", "aten.expand_as", "aten.broadcast_to"), _expand),
    "aten.permute": _permute,
    **dict.fromkeys(("aten.transpose", "aten.swapaxes", "aten.swapdims"), _transpose),
    **dict.fromkeys(("aten.t", "aten.mT", "aten.adjoint"), _matrix_transpose),
    "aten.numpy_T": lambda site, x: _permuted(x, tuple(reversed(range(x.type.rank)))),
    **dict.fromkeys(("aten.movedim", "aten.moveaxis"), _movedim),
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.narrow.default": _narrow,
    **dict.fromkeys(("aten.cat", "aten.concat", "aten.concatenate"), _cat),
    "aten.stack": _stack,
    **dict.fromkeys(
        ("aten.split.Tensor", "aten.split.sizes", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split.sections"),
        _split,
    ),
    "aten.unbind": _unbind,
    "aten.pad": _pad,
    "aten.constant_pad_nd": _constant_pad,
    "aten.repeat": _repeat,
    "aten.tile": lambda site, x, repeats: _repeat(site, x, (1,) * (x.type.rank - len(repeats)) + repeats),
    "aten.repeat_interleave.self_int": _repeat_interleave,
    "aten.flip": _flip,
    "aten.roll": _roll,
    "aten.tril": _triangle(upper=False),
    "aten.triu": _triangle(upper=True),
    "aten.gather": _gather,
    "aten.index_select": _index_select,
    "aten.index.Tensor": _index,
    "aten.scatter.src": _scatter,
    "aten.scatter.value": _scatter,
}
