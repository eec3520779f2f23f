"""How are numbers of a weight mixed along an axis? Scaled by a vector, and turned by an orthogonal matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import IRError
from ..floats import as_f32
from ..orthogonal import KINDS, multiplied
from ..types import TensorType, tensor
from .recipe import AnyArray, Recipe, numpy_dtype, static_shape


@dataclass(frozen=True)
class Scale(Recipe):
    """`source` with its index i along the last axis multiplied by by[i], in f32 and rounded to the dtype of `source`
    (decoded, where encoded)."""

    source: Recipe
    by: Recipe

    def __post_init__(self) -> None:
        if static_shape(self.by.type) != static_shape(self.source.type)[-1:]:
            raise IRError(f"{self.by.type} is not one number for each column of a {self.source.type}")

    @property
    def type(self) -> TensorType:
        return self.source.type.with_element(self.source.type.dtype)

    def rows(self, start: int, stop: int) -> AnyArray:
        values = as_f32(self.source.rows(start, stop)) * as_f32(self.by.read())
        return values.astype(numpy_dtype(self.type.dtype), copy=False)


@dataclass(frozen=True)
class Rotate(Recipe):
    """`source` turned along `axis`: each `block` of indices times the random orthogonal matrix of that order, of this
    `kind` and `seed` (see orthogonal.py), in f32 and rounded to the dtype of `source`.

    A matrix that is turned along what it makes, and the next one along what it reads, are one product as before.
    """

    source: Recipe
    axis: int
    block: int
    kind: str = "hadamard"
    seed: int = 0

    def __post_init__(self) -> None:
        shape = static_shape(self.source.type)
        if not 0 <= self.axis < len(shape) or self.block < 1 or shape[self.axis] % self.block:
            raise IRError(f"axis {self.axis} of a {self.source.type} is not made of blocks of {self.block}")
        if self.kind not in KINDS or not self.source.type.dtype.is_float:
            raise IRError(f"a {self.source.type} cannot be turned by {self.kind}", f"one of {', '.join(KINDS)}")

    @property
    def type(self) -> TensorType:
        return self.source.type.with_element(self.source.type.dtype)

    @property
    def row_local(self) -> bool:
        return self.axis != 0 and self.source.row_local

    def rows(self, start: int, stop: int) -> AnyArray:
        if self.axis:
            return self._turned(self.source.rows(start, stop))
        # Only the blocks that these rows lie in.
        first, last = start // self.block * self.block, -(-stop // self.block) * self.block
        return self._turned(self.source.rows(first, last))[start - first : stop - first]

    def _turned(self, values: AnyArray) -> AnyArray:
        moved = np.moveaxis(as_f32(values), self.axis, -1)
        blocks = np.ascontiguousarray(moved).reshape(*moved.shape[:-1], -1, self.block)
        turned = multiplied(blocks, self.kind, self.seed).reshape(moved.shape)
        return np.moveaxis(turned, -1, self.axis).astype(numpy_dtype(self.type.dtype), copy=False)


@dataclass(frozen=True)
class Project(Recipe):
    """`source` times `basis`[size, width] along `axis`, which then has that width; in f32, rounded to the dtype of
    `source`. With orthonormal columns these are coordinates in a part of the space."""

    source: Recipe
    basis: Recipe
    axis: int

    def __post_init__(self) -> None:
        shape, basis = static_shape(self.source.type), static_shape(self.basis.type)
        if not 0 <= self.axis < len(shape) or len(basis) != 2 or shape[self.axis] != basis[0]:
            raise IRError(f"axis {self.axis} of a {self.source.type} cannot be projected by a {self.basis.type}")

    @property
    def type(self) -> TensorType:
        shape = list(self.source.type.shape)
        shape[self.axis] = self.basis.type.shape[1]
        return tensor(self.source.type.dtype, tuple(shape))

    @property
    def row_local(self) -> bool:
        return self.axis != 0 and self.source.row_local

    def rows(self, start: int, stop: int) -> AnyArray:
        basis = as_f32(self.basis.read())
        if self.axis == 0:
            values, basis = as_f32(self.source.read()), basis[:, start:stop]
        else:
            values = as_f32(self.source.rows(start, stop))
        made = np.moveaxis(np.moveaxis(values, self.axis, -1) @ basis, -1, self.axis)
        return made.astype(numpy_dtype(self.type.dtype), copy=False)
