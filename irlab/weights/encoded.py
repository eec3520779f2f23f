"""How do encoded weights come about? By encoding rows of another recipe, or from codes stored earlier."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..encodings import Codes, Encoding, Extent, extent_of
from ..encodings.base import Floats
from ..encodings.robust import encode_robustly
from ..errors import IRError
from ..floats import as_f32
from ..types import TensorType, f32, tensor
from .leaves import Array
from .recipe import AnyArray, Recipe, static_shape


@dataclass(frozen=True)
class Ends(Recipe):
    """The smallest and the largest number of all `sources`: f32[2], found in one pass over them, and kept."""

    sources: tuple[Recipe, ...]

    @property
    def type(self) -> TensorType:
        return tensor(f32, (2,))

    @cached_property
    def found(self) -> Extent:
        extents = [extent_of(s.rows(start, stop)) for s in self.sources for start, stop in s.chunks()]
        return Extent(min(e.low for e in extents), max(e.high for e in extents)) if extents else Extent(0, 0)

    def rows(self, start: int, stop: int) -> AnyArray:
        return np.array(self.found, np.float32)[start:stop]


@dataclass(frozen=True)
class Encode(Recipe):
    """`source`[..., columns] encoded row by row, with the least squares of errors, weighted by `importance`[columns] if
    it is given; or below a `norm` of 2 the least sum of errors to that power (encodings/robust.py). `ends`: f32[2], the
    smallest and the largest number that what belongs to the whole tensor is to reach, where they are not its own."""

    costly = True

    source: Recipe
    encoding: Encoding
    norm: float = 2.0
    importance: Recipe | None = None
    ends: Recipe | None = None

    def __post_init__(self) -> None:
        if self.ends is not None and self.ends.type is not tensor(f32, (2,)):
            raise IRError(f"the ends of numbers are a {self.ends.type}, not an f32[2]")
        if self.importance is not None:
            columns = static_shape(self.source.type)[-1]
            if static_shape(self.importance.type) != (columns,) or not self.importance.type.dtype.is_float:
                raise IRError(f"the importances of {columns} columns are a {self.importance.type}")
            if self.norm != 2:
                raise IRError(f"errors to the power {self.norm:g} are not weighted")
        if not 0 < self.norm <= 2:
            raise IRError(f"errors cannot be summed to the power {self.norm:g}", "0 < norm <= 2")
        self.encoding.check_shape(static_shape(self.source.type))
        if not self.source.type.dtype.is_float:
            raise IRError(f"only floats are encoded, not {self.source.type}")

    @property
    def type(self) -> TensorType:
        return self.source.type.with_element(self.encoding)

    @cached_property
    def extent(self) -> Extent | None:
        """What the scale of the tensor is to reach, where the encoding asks for it."""
        if not self.encoding.tensor_wide:
            return None
        if self.ends is None:
            return Ends((self.source,)).found
        return self.ends.found if isinstance(self.ends, Ends) else Extent(*map(float, self.ends.read()))

    def codes(self, start: int, stop: int) -> Codes:
        first, last = _whole_blocks(self, start, stop)
        rows = self.source.rows(first, last)
        if self.norm < 2:
            codes = encode_robustly(self.encoding, rows, self.norm, self.extent)
        else:
            codes = self.encoding.encode(rows, self.weights, self.extent)
        return _cut(codes, start - first, stop - first)

    @property
    def weights(self) -> Floats | None:
        """The importance of each column."""
        return None if self.importance is None else as_f32(self.importance.read())

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.encoding.decode(self.codes(start, stop))


@dataclass(frozen=True)
class Encoded(Encode, text_name=""):
    """An `Encode` whose codes were computed before and are read from `kept`; what they were made from stays known."""

    costly = False

    kept: Recipe = field(kw_only=True)

    def codes(self, start: int, stop: int) -> Codes:
        return self.kept.codes(start, stop)

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.kept.rows(start, stop)


@dataclass(frozen=True)
class Decode(Recipe):
    """The plain numbers that an encoded `source` stands for."""

    source: Recipe

    @property
    def type(self) -> TensorType:
        return self.source.type.with_element(self.source.type.dtype)

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.source.rows(start, stop)


@dataclass(frozen=True)
class Parts(Recipe):
    """Stored codes: a plain recipe for each packed part of the encoding of `of`, in the order of its `packed_types`."""

    of: TensorType
    parts: tuple[Recipe, ...]

    def __post_init__(self) -> None:
        encoding = self.of.encoding
        if encoding is None:
            raise IRError(f"a {self.of} has no codes")
        expected = encoding.packed_types(static_shape(self.of))
        if [part.type for part in self.parts] != list(expected.values()):
            found = ", ".join(str(part.type) for part in self.parts)
            needed = ", ".join(f"{name}: {type}" for name, type in expected.items())
            raise IRError(f"the codes of a {self.of} are {needed}, not {found}")

    @property
    def type(self) -> TensorType:
        return self.of

    @property
    def encoding(self) -> Encoding:
        assert self.of.encoding is not None
        return self.of.encoding

    def codes(self, start: int, stop: int) -> Codes:
        shape = static_shape(self.of)
        first, last = _whole_blocks(self, start, stop)
        packed = {name: part.rows(first, last) for name, part in zip(self.encoding.packed_types(shape), self.parts)}
        return _cut(self.encoding.unpack(packed, shape[-1]), start - first, stop - first)

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.encoding.decode(self.codes(start, stop))


def _whole_blocks(recipe: Recipe, start: int, stop: int) -> tuple[int, int]:
    """The rows [start:stop] with those that are encoded together with them."""
    encoding = recipe.type.encoding
    block = encoding.row_block if encoding is not None else 1
    return start // block * block, min(recipe.row_count, -(-stop // block) * block)


def _cut(codes: Codes, start: int, stop: int) -> Codes:
    if all(start == 0 and stop == len(part) for part in codes.values()):
        return codes
    return {name: part[start:stop] for name, part in codes.items()}


def with_codes(shape: tuple[int, ...], encoding: Encoding, codes: Codes) -> Parts:
    """A tensor of `shape` whose codes were computed: it holds them in memory."""
    types = encoding.packed_types(shape)
    packed = encoding.pack(codes)
    return Parts(tensor(encoding, shape), tuple(Array(kind, packed[name]) for name, kind in types.items()))
