"""How are numbers of a weight changed one by one? Casts, and affine maps computed in f32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import IRError
from ..types import DType, TensorType
from .recipe import AnyArray, Recipe, as_f32, numpy_dtype


@dataclass(frozen=True)
class Cast(Recipe):
    """`source` in another dtype, rounded to nearest; an encoded source is decoded."""

    source: Recipe
    dtype: DType

    @property
    def type(self) -> TensorType:
        return self.source.type.with_element(self.dtype)

    def rows(self, start: int, stop: int) -> AnyArray:
        values = self.source.rows(start, stop)
        return as_f32(values) if self.dtype.name == "f32" else values.astype(numpy_dtype(self.dtype), copy=False)


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
