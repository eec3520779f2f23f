"""How are the smallest numbers of a weight left out? By their magnitude alone: nothing of the data is asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import IRError
from ..floats import as_f32
from ..types import TensorType
from .recipe import AnyArray, Recipe, static_shape


@dataclass(frozen=True)
class Prune(Recipe):
    """`source` with zeros for a share of its numbers, the smallest in magnitude of the whole tensor; with `keep_of`,
    for all but the `keep` largest of every `keep_of` neighbours in a row."""

    source: Recipe
    sparsity: float = 0.5
    keep: int = 0
    keep_of: int = 0

    def __post_init__(self) -> None:
        kind = self.source.type
        if not kind.dtype.is_float or kind.encoding is not None or not kind.shape:
            raise IRError(f"only rows of plain floats are pruned, not {kind}")
        if not 0 <= self.sparsity < 1:
            raise IRError(f"a sparsity of {self.sparsity:g} is not in [0, 1)")
        if self.keep_of and (not 0 < self.keep <= self.keep_of or static_shape(kind)[-1] % self.keep_of):
            raise IRError(f"{self.keep} of every {self.keep_of} cannot be kept in rows of {static_shape(kind)[-1]}")

    @property
    def type(self) -> TensorType:
        return self.source.type

    @cached_property
    def threshold(self) -> float:
        """The largest magnitude that is left out (-1: nothing is), of the whole tensor: found once, in one pass."""
        sizes = np.concatenate(
            [np.abs(as_f32(self.source.rows(start, stop))).reshape(-1) for start, stop in self.source.chunks()]
        )
        gone = round(self.sparsity * sizes.size)
        return float(np.partition(sizes, gone - 1)[gone - 1]) if gone else -1.0

    def rows(self, start: int, stop: int) -> AnyArray:
        values = self.source.rows(start, stop)
        sizes = np.abs(as_f32(values))
        if not self.keep_of:
            return np.where(sizes > self.threshold, values, values.dtype.type(0))
        groups = sizes.reshape(-1, self.keep_of)
        order = np.argsort(-groups, axis=1, kind="stable")
        mask = np.zeros(groups.shape, bool)
        np.put_along_axis(mask, order[:, : self.keep], True, 1)
        return np.where(mask.reshape(values.shape), values, values.dtype.type(0))
