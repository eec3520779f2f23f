"""How are numbers of a weight changed? Casts, affine maps and low-rank updates, computed in f32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError, IRError
from ..floats import as_f16, as_f32
from ..types import DType, TensorType, f16, f32
from .recipe import AnyArray, Recipe, numpy_dtype, static_shape


@dataclass(frozen=True)
class Cast(Recipe):
    """`source` in another dtype, rounded to nearest; an encoded source is decoded.

    Reading raises InputError where a number is too large for f16, which would become an infinity.
    """

    source: Recipe
    dtype: DType

    @property
    def type(self) -> TensorType:
        return self.source.type.with_element(self.dtype)

    def rows(self, start: int, stop: int) -> AnyArray:
        values = self.source.rows(start, stop)
        if self.dtype is f32:
            return as_f32(values)
        if self.dtype is not f16:
            return values.astype(numpy_dtype(self.dtype), copy=False)
        try:
            return as_f16(values)
        except OverflowError as error:
            raise InputError(str(error), "use bf16 or f32") from None


@dataclass(frozen=True)
class Affine(Recipe):
    """source * scale + offset, computed in f32 and rounded to the dtype of `source` (decoded, where encoded)."""

    source: Recipe
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not self.source.type.dtype.is_float:
            raise IRError(f"an affine map needs floats, not {self.source.type}")

    @property
    def type(self) -> TensorType:
        return self.source.type.with_element(self.source.type.dtype)

    def rows(self, start: int, stop: int) -> AnyArray:
        values = as_f32(self.source.rows(start, stop)) * np.float32(self.scale) + np.float32(self.offset)
        return values.astype(numpy_dtype(self.type.dtype), copy=False)


@dataclass(frozen=True)
class LowRankUpdate(Recipe):
    """source[out, in] + b[out, rank] @ a[rank, in], computed in f32 and rounded to the dtype of `source` (decoded,
    where encoded)."""

    source: Recipe
    a: Recipe
    b: Recipe

    def __post_init__(self) -> None:
        shape, (rank, columns) = static_shape(self.source.type), static_shape(self.a.type)
        if static_shape(self.b.type) != (shape[0], rank) or shape != (shape[0], columns):
            raise IRError(f"{self.b.type} times {self.a.type} is no update of a {self.source.type}")

    @property
    def type(self) -> TensorType:
        return self.source.type.with_element(self.source.type.dtype)

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.inputs)

    def rows(self, start: int, stop: int) -> AnyArray:
        update = as_f32(self.b.rows(start, stop)) @ as_f32(self.a.read())
        values = as_f32(self.source.rows(start, stop)) + update
        return values.astype(numpy_dtype(self.type.dtype), copy=False)


@dataclass(frozen=True)
class Mean(Recipe):
    """The mean of `sources`, which are floats of one type, computed in f32 and rounded to their dtype."""

    sources: tuple[Recipe, ...]

    def __post_init__(self) -> None:
        if len({source.type for source in self.sources}) != 1 or self.sources[0].type.encoding is not None:
            raise IRError(f"there is no mean of {', '.join(str(source.type) for source in self.sources) or 'nothing'}")
        if not self.sources[0].type.dtype.is_float:
            raise IRError(f"a mean needs floats, not {self.sources[0].type}")

    @property
    def type(self) -> TensorType:
        return self.sources[0].type

    def rows(self, start: int, stop: int) -> AnyArray:
        total = sum(as_f32(source.rows(start, stop)) for source in self.sources)
        return (total / np.float32(len(self.sources))).astype(numpy_dtype(self.type.dtype))
