"""How are the smallest numbers of a weight left out? By their magnitude alone: nothing of the data is asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..errors import InputError, IRError
from ..floats import as_f32
from ..types import TensorType
from .recipe import AnyArray, Recipe, static_shape

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prune(Recipe):
    """The matrix `source` with zeros for a share of its numbers, those that are smallest for their row and column; with
    `keep_of`, for all but the `keep` largest of every `keep_of` neighbours in a row.

    A number counts by abs(w) / (|row| |column|), with sums of magnitudes: as much as it exceeds what its row and column
    let expect. By magnitude alone whole rows and columns of small numbers would go.
    """

    source: Recipe
    sparsity: float = 0.5
    keep: int = 0
    keep_of: int = 0

    def __post_init__(self) -> None:
        kind = self.source.type
        if not kind.dtype.is_float or kind.encoding is not None or kind.rank != 2:
            raise IRError(f"only matrices of plain floats are pruned, not {kind}")
        if not 0 <= self.sparsity < 1:
            raise IRError(f"a sparsity of {self.sparsity:g} is not in [0, 1)")
        if self.keep_of and (not 0 < self.keep <= self.keep_of or static_shape(kind)[-1] % self.keep_of):
            raise IRError(f"{self.keep} of every {self.keep_of} cannot be kept in rows of {static_shape(kind)[-1]}")

    @property
    def type(self) -> TensorType:
        return self.source.type

    @cached_property
    def columns(self) -> Floats:
        """The sums of magnitudes of all columns, found once, in one pass."""
        total = sum(np.abs(as_f32(self.source.rows(*span))).sum(0, dtype=np.float64) for span in self.source.chunks())
        if not np.isfinite(total).all():
            raise InputError("NaN or infinite numbers cannot be told large from small")
        return np.asarray(total, np.float32)

    @cached_property
    def threshold(self) -> float:
        """The largest score that is left out (-1: none is), of the whole matrix: found once, in one pass."""
        scores = np.concatenate([self._scores(self.source.rows(*span)).reshape(-1) for span in self.source.chunks()])
        gone = round(self.sparsity * scores.size)
        return float(np.partition(scores, gone - 1)[gone - 1]) if gone else -1.0

    def rows(self, start: int, stop: int) -> AnyArray:
        values = self.source.rows(start, stop)
        scores = self._scores(values)
        if not self.keep_of:
            return np.where(scores > self.threshold, values, values.dtype.type(0))
        groups = scores.reshape(-1, self.keep_of)
        order = np.argsort(-groups, axis=1, kind="stable")
        mask = np.zeros(groups.shape, bool)
        np.put_along_axis(mask, order[:, : self.keep], True, 1)
        return np.where(mask.reshape(values.shape), values, values.dtype.type(0))

    def _scores(self, values: AnyArray) -> Floats:
        return relative_magnitudes(np.abs(as_f32(values)), self.columns)


def relative_magnitudes(sizes: Floats, columns: Floats) -> Floats:
    """sizes[rows, columns], each over the sums of its row and of its column, `columns` those of the whole matrix."""
    tiny = np.finfo(np.float32).tiny
    rows = np.maximum(sizes.sum(1, keepdims=True), tiny)
    scores: Floats = sizes / rows * (columns.mean() / np.maximum(columns, tiny))
    return scores
