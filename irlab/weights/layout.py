"""Which numbers stand where? Recipes that only move numbers: slices, concatenations, transposes, reshapes, gathers.

They move the codes of an encoded tensor as well, as long as its rows (the last axis: groups run along it) stay whole.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..encodings import Codes
from ..errors import IRError
from ..types import TensorType
from .recipe import AnyArray, Recipe, static_shape

Bundle: TypeAlias = Mapping[str, AnyArray]
"""Arrays that move together: the plain numbers under "", or the parts of the codes."""

Read: TypeAlias = Callable[[Recipe, int, int], Bundle]

PLAIN = ""


def _each(function: Callable[..., AnyArray], *bundles: Bundle) -> Bundle:
    return {part: function(*(bundle[part] for bundle in bundles)) for part in bundles[0]}


def _read_rows(recipe: Recipe, start: int, stop: int) -> Bundle:
    return {PLAIN: recipe.rows(start, stop)}


def _read_codes(recipe: Recipe, start: int, stop: int) -> Bundle:
    return recipe.codes(start, stop)


class Layout(Recipe, text_name=""):
    """Base of the recipes that move numbers: `move` does it for plain numbers and for codes alike."""

    @abstractmethod
    def move(self, start: int, stop: int, read: Read) -> Bundle:
        """Rows [start:stop] of this tensor, made from what `read` gives of the inputs."""

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.move(start, stop, _read_rows)[PLAIN]

    def codes(self, start: int, stop: int) -> Codes:
        if self.type.encoding is None:
            return super().codes(start, stop)
        return self.move(start, stop, _read_codes)

    def refuse(self, why: str) -> IRError:
        return IRError(f"cannot {self.text_name} {', '.join(str(source.type) for source in self.inputs)}: {why}")


@dataclass(frozen=True)
class Slice(Layout):
    """Elements [start:stop] of `source` along `axis`."""

    source: Recipe
    axis: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        shape = static_shape(self.source.type)
        if not 0 <= self.axis < len(shape) or not 0 <= self.start <= self.stop <= shape[self.axis]:
            raise self.refuse(f"[{self.start}:{self.stop}] of axis {self.axis} is outside it")
        if self.source.type.encoding is not None and self.axis == len(shape) - 1:
            raise self.refuse("an encoded row cannot be cut")

    @property
    def type(self) -> TensorType:
        shape = self.source.type.shape
        return self.source.type.with_shape((*shape[: self.axis], self.stop - self.start, *shape[self.axis + 1 :]))

    def move(self, start: int, stop: int, read: Read) -> Bundle:
        if self.axis == 0:
            return read(self.source, self.start + start, self.start + stop)
        at = (np.s_[:],) * self.axis + (np.s_[self.start : self.stop],)
        return _each(lambda a: a[at], read(self.source, start, stop))


@dataclass(frozen=True)
class Concat(Layout):
    """`sources` one after another along `axis`."""

    sources: tuple[Recipe, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise IRError("cannot concat nothing")
        types = [source.type for source in self.sources]
        shapes = [static_shape(t) for t in types]
        rests = {(t.element, s[: self.axis], s[self.axis + 1 :]) for t, s in zip(types, shapes)}
        if not 0 <= self.axis < len(shapes[0]) or len(rests) != 1:
            raise self.refuse(f"they differ off axis {self.axis}")
        if types[0].encoding is not None and self.axis == len(shapes[0]) - 1:
            raise self.refuse("encoded rows cannot be joined")

    @property
    def type(self) -> TensorType:
        first = self.sources[0].type
        total = sum(static_shape(source.type)[self.axis] for source in self.sources)
        return first.with_shape((*first.shape[: self.axis], total, *first.shape[self.axis + 1 :]))

    def move(self, start: int, stop: int, read: Read) -> Bundle:
        if self.axis != 0:
            pieces = [read(source, start, stop) for source in self.sources]
            return _each(lambda *arrays: np.concatenate(arrays, self.axis), *pieces)
        pieces, offset = [], 0
        for source in self.sources:
            low, high = max(start - offset, 0), min(stop - offset, source.row_count)
            if low < high:
                pieces.append(read(source, low, high))
            offset += source.row_count
        if not pieces:
            return read(self.sources[0], 0, 0)
        return pieces[0] if len(pieces) == 1 else _each(lambda *arrays: np.concatenate(arrays), *pieces)


@dataclass(frozen=True)
class Reshape(Layout):
    """The same numbers in row-major order under another shape."""

    source: Recipe
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        old = static_shape(self.source.type)
        if math.prod(old) != math.prod(self.shape) or any(size < 0 for size in self.shape):
            raise self.refuse(f"{list(self.shape)} holds another number of elements")
        if self.source.type.encoding is not None and (not self.shape or self.shape[-1] != old[-1]):
            raise self.refuse("encoded rows must stay whole")

    @property
    def type(self) -> TensorType:
        return self.source.type.with_shape(self.shape)

    def move(self, start: int, stop: int, read: Read) -> Bundle:
        old_row = math.prod(static_shape(self.source.type)[1:])
        new_row = math.prod(self.shape[1:])
        first, last = start * new_row, stop * new_row
        if not old_row or first == last:
            low = high = cut = 0
        else:
            low, high = first // old_row, -(-last // old_row)
            cut = first - low * old_row
        encoded = self.source.type.encoding is not None
        columns = self.shape[-1] if encoded else 1

        def reshape(array: AnyArray) -> AnyArray:
            # For codes the last axis is as wide as the part: `width` of it belong to `columns` numbers.
            width = array.shape[-1] if encoded else 1
            flat = array.reshape(-1)[cut // columns * width : (cut + last - first) // columns * width]
            return flat.reshape(stop - start, *(*self.shape[1:-1], width) if encoded else self.shape[1:])

        return _each(reshape, read(self.source, low, high))


@dataclass(frozen=True)
class Transpose(Layout):
    """Axis i of the result is axis `permutation[i]` of `source`.

    Where the first axis moves, any row needs the whole source: such a tensor is read in one piece.
    """

    source: Recipe
    permutation: tuple[int, ...]

    def __post_init__(self) -> None:
        rank = self.source.type.rank
        if sorted(self.permutation) != list(range(rank)):
            raise self.refuse(f"{self.permutation} is no permutation of its axes")
        if self.source.type.encoding is not None and self.permutation[-1] != rank - 1:
            raise self.refuse("encoded rows must stay whole")

    @property
    def type(self) -> TensorType:
        return self.source.type.with_shape(tuple(self.source.type.shape[axis] for axis in self.permutation))

    @property
    def row_local(self) -> bool:
        return self.permutation[:1] in ((), (0,)) and self.source.row_local

    def move(self, start: int, stop: int, read: Read) -> Bundle:
        if self.permutation[:1] in ((), (0,)):
            return _each(lambda a: a.transpose(self.permutation or (0,)), read(self.source, start, stop))
        whole = read(self.source, 0, self.source.row_count)
        return _each(lambda a: np.ascontiguousarray(a.transpose(self.permutation)[start:stop]), whole)


@dataclass(frozen=True)
class Take(Layout):
    """What `source` has at `indices` of `axis`, in that order."""

    source: Recipe
    indices: tuple[int, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        shape = static_shape(self.source.type)
        if not 0 <= self.axis < max(1, len(shape)):
            raise self.refuse(f"it has no axis {self.axis}")
        size = shape[self.axis] if shape else 0
        if not all(0 <= i < size for i in self.indices):
            raise self.refuse("an index is outside its rows" if self.axis == 0 else "an index is outside the axis")
        if self.source.type.encoding is not None and self.axis == len(shape) - 1:
            raise self.refuse("an encoded row cannot be cut")

    @property
    def type(self) -> TensorType:
        shape = self.source.type.shape
        return self.source.type.with_shape((*shape[: self.axis], len(self.indices), *shape[self.axis + 1 :]))

    def move(self, start: int, stop: int, read: Read) -> Bundle:
        if self.axis:
            wanted = np.array(self.indices, dtype=np.intp)
            return _each(lambda a: a.take(wanted, self.axis), read(self.source, start, stop))
        wanted = np.array(self.indices[start:stop], dtype=np.intp)
        if not len(wanted):
            return read(self.source, 0, 0)
        low, high = int(wanted.min()), int(wanted.max()) + 1
        return _each(lambda a: a[wanted - low], read(self.source, low, high))


def take(source: Recipe, indices: Sequence[int], axis: int = 0) -> Recipe:
    """What `source` has at `indices` of `axis`: a slice where they follow each other."""
    first, count = (indices[0], len(indices)) if len(indices) else (0, 0)
    if list(indices) == list(range(first, first + count)):
        return Slice(source, axis, first, first + count)
    return Take(source, tuple(indices), axis)


def interleave_halves(source: Recipe, heads: int) -> Recipe:
    """`source`[heads * head_dim, ...] with the rows of each head reordered from halves to pairs: rows i and
    i + head_dim / 2 become rows 2i and 2i + 1. It turns q and k weights (and biases) made for rotary embedding of the
    pairs (i, i + n) into ones for the pairs (2i, 2i + 1)."""
    shape = static_shape(source.type)
    split = Reshape(source, (heads, 2, shape[0] // heads // 2, *shape[1:]))
    turned = Transpose(split, (0, 2, 1, *range(3, len(shape) + 2)))
    return Reshape(turned, shape)
