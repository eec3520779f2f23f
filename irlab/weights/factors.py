"""Matrices as products of two thin ones: the factors of a truncated SVD, and the product of factors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import IRError
from ..floats import as_f32
from ..types import TensorType
from .recipe import AnyArray, Recipe, numpy_dtype, static_shape


@dataclass(frozen=True)
class Factor(Recipe):
    """A factor of the best product b[out, rank] @ a[rank, in] for the matrix `source`, by its singular value
    decomposition; `side` is "a" or "b". Both are as large: the singular values are shared out."""

    costly = True

    source: Recipe
    rank: int
    side: str = "a"

    def __post_init__(self) -> None:
        kind = self.source.type
        if kind.rank != 2 or kind.encoding is not None or not kind.dtype.is_float:
            raise IRError(f"only matrices of plain floats have factors, not {kind}")
        if not 0 < self.rank <= min(static_shape(kind)) or self.side not in ("a", "b"):
            raise IRError(f"a {kind} has no factor '{self.side}' of rank {self.rank}")

    @property
    def type(self) -> TensorType:
        rows, columns = static_shape(self.source.type)
        return self.source.type.with_shape((self.rank, columns) if self.side == "a" else (rows, self.rank))

    @property
    def row_local(self) -> bool:
        return False

    def rows(self, start: int, stop: int) -> AnyArray:
        from scipy.linalg import eigh

        w = as_f32(self.source.read()).astype(np.float64)
        small = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        n = len(small)
        values, vectors = eigh(small, subset_by_index=(n - self.rank, n - 1))
        roots = np.maximum(values, 0) ** 0.25
        inverse = np.divide(1, roots, out=np.zeros_like(roots), where=roots > roots.max(initial=0) * 1e-8)
        if w.shape[0] <= w.shape[1]:
            found = (vectors * inverse).T @ w if self.side == "a" else vectors * roots
        else:
            found = (vectors * roots).T if self.side == "a" else w @ (vectors * inverse)
        rows: AnyArray = found[start:stop].astype(numpy_dtype(self.type.dtype))
        return rows


@dataclass(frozen=True)
class Product(Recipe):
    """b[out, rank] @ a[rank, in], computed in f32 and rounded to the dtype of b (decoded, where encoded)."""

    a: Recipe
    b: Recipe

    def __post_init__(self) -> None:
        if self.a.type.rank != 2 or self.b.type.rank != 2 or self.b.type.shape[1] != self.a.type.shape[0]:
            raise IRError(f"{self.b.type} and {self.a.type} cannot be multiplied")

    @property
    def type(self) -> TensorType:
        return self.b.type.with_shape((self.b.type.shape[0], self.a.type.shape[1])).with_element(self.b.type.dtype)

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.inputs)

    def rows(self, start: int, stop: int) -> AnyArray:
        product = as_f32(self.b.rows(start, stop)) @ as_f32(self.a.read())
        return product.astype(numpy_dtype(self.type.dtype))
