"""What weights read: channel by channel, or as products of channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import numpy.typing as npt

from .base import Analysis, Columns, Doubles, RowAnalysis

if TYPE_CHECKING:
    import torch

_PRODUCT_ROWS: Final = 1024
"""Products are summed in f32 over so many rows, then in f64."""


class InputStatistics(RowAnalysis):
    """Per input channel of a weight: the largest magnitude, the mean magnitude and the mean square of what it reads.

    `count` is the number of rows; the arrays are f64[in].
    """

    name = "input-statistics"

    def __init__(self, count: int, max_abs: Doubles, sum_abs: Doubles, sum_squares: Doubles) -> None:
        self.count, self.max_abs, self._sum_abs, self._sum_squares = count, max_abs, sum_abs, sum_squares

    @property
    def mean_abs(self) -> Doubles:
        return self._sum_abs / max(1, self.count)

    @property
    def mean_square(self) -> Doubles:
        return self._sum_squares / max(1, self.count)

    @classmethod
    def empty(cls, width: int) -> Self:
        return cls(0, np.zeros(width), np.zeros(width), np.zeros(width))

    def add(self, x: torch.Tensor) -> None:
        magnitudes = x.abs()
        self.count += len(x)
        self.max_abs = np.maximum(self.max_abs, magnitudes.amax(0).double().cpu().numpy())
        self._sum_abs = self._sum_abs + magnitudes.double().sum(0).cpu().numpy()
        self._sum_squares = self._sum_squares + x.double().square().sum(0).cpu().numpy()

    def merge(self, other: Self) -> None:
        self.count += other.count
        self.max_abs = np.maximum(self.max_abs, other.max_abs)
        self._sum_abs = self._sum_abs + other._sum_abs
        self._sum_squares = self._sum_squares + other._sum_squares

    def divided(self, by: Doubles) -> Self:
        return type(self)(self.count, self.max_abs / by, self._sum_abs / by, self._sum_squares / by**2)

    def taken(self, columns: Columns) -> Self:
        sums = (self.max_abs, self._sum_abs, self._sum_squares)
        return type(self)(self.count, *(array[columns] for array in sums))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        sums = {"max_abs": self.max_abs, "sum_abs": self._sum_abs, "sum_squares": self._sum_squares}
        return {"count": np.array([self.count]), **sums}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        return cls(int(arrays["count"][0]), arrays["max_abs"], arrays["sum_abs"], arrays["sum_squares"])


class _Products(Analysis):
    """The mean of products of pairs of rows: f64[in, in]."""

    def __init__(self, count: int, total: Doubles) -> None:
        self.count, self._total = count, total

    @property
    def matrix(self) -> Doubles:
        """The mean product, a new array."""
        return self._total / max(1, self.count)

    @classmethod
    def empty(cls, width: int) -> Self:
        """Facts about no rows, of `width` numbers each."""
        return cls(0, np.zeros((width, width)))

    def add_pairs(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Take in f32[rows, width], twice."""
        import torch

        total = torch.from_numpy(self._total)
        for start in range(0, len(left), _PRODUCT_ROWS):
            rows = slice(start, start + _PRODUCT_ROWS)
            total += (left[rows].T @ right[rows]).cpu()
        self.count += len(left)

    def merge(self, other: Self) -> None:
        self.count += other.count
        self._total = self._total + other._total

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"count": np.array([self.count]), "total": self._total}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        return cls(int(arrays["count"][0]), arrays["total"])


class InputHessian(_Products, RowAnalysis):
    """E[x x^T] over the rows x that a weight reads: f64[in, in], half the Hessian of its output's squared error.

    Weights that read the same value share one object.
    """

    name = "input-hessian"

    @property
    def diagonal(self) -> Doubles:
        """The mean square of each input: f64[in]."""
        return np.diagonal(self._total) / max(1, self.count)

    def add(self, x: torch.Tensor) -> None:
        self.add_pairs(x, x)

    def divided(self, by: Doubles) -> Self:
        return type(self)(self.count, self._total / by / by[:, None])

    def taken(self, columns: Columns) -> Self:
        return type(self)(self.count, self._total[np.ix_(columns, columns)])


class OriginalInputs(_Products):
    """E[x0 x^T] over pairs of rows: x0 is what a weight read before a sweep changed anything, x what it reads now.

    f64[in, in]. It is the Hessian as long as nothing has changed. With it a weight can be fitted to what the original
    one computed, so that it makes up for the errors of the weights before it (see reconstruction.py).
    """

    name = "original-inputs"

    def add(self, original: torch.Tensor, x: torch.Tensor) -> None:
        """Take in f32[rows, width], twice."""
        self.add_pairs(original, x)
