"""What the loss says of weights: squared gradients, which are the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from .base import Doubles, GradientAnalysis

if TYPE_CHECKING:
    import torch


class OutputGradient(GradientAnalysis):
    """Per output channel of a weight: the mean squared gradient of the loss with respect to it, f64[out].

    It is the diagonal of the Fisher information: by it the errors of different weights compare (Frantar & Alistarh
    2022; Kim et al. 2023, SqueezeLLM).
    """

    name = "output-gradient"

    def __init__(self, count: int, sum_squares: Doubles) -> None:
        self.count, self._sum_squares = count, sum_squares

    @property
    def mean_square(self) -> Doubles:
        return self._sum_squares / max(1, self.count)

    @classmethod
    def empty(cls, rows: int, columns: int) -> Self:
        return cls(0, np.zeros(rows))

    def add(self, gradient: torch.Tensor) -> None:
        """Take in gradients f32[rows, out]."""
        self.count += len(gradient)
        self._sum_squares = self._sum_squares + gradient.double().square().sum(0).cpu().numpy()

    def merge(self, other: Self) -> None:
        self.count += other.count
        self._sum_squares = self._sum_squares + other._sum_squares

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"count": np.array([self.count]), "sum_squares": self._sum_squares}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        return cls(int(arrays["count"][0]), arrays["sum_squares"])


class TableGradient(GradientAnalysis):
    """For an embedding table [rows, columns]: the squared gradients of the loss with respect to what was read from it,
    summed over reads. `count` is the number of reads, `reads` that of each row; `by_row` is f64[rows], `by_column`
    f64[columns]. (Of each number by itself they would take as much room as the table.)
    """

    name = "table-gradient"

    def __init__(self, count: int, reads: Doubles, by_row: Doubles, by_column: Doubles) -> None:
        self.count, self.reads, self.by_row, self.by_column = count, reads, by_row, by_column

    @classmethod
    def empty(cls, rows: int, columns: int) -> Self:
        return cls(0, np.zeros(rows), np.zeros(rows), np.zeros(columns))

    def add(self, ids: torch.Tensor, gradient: torch.Tensor) -> None:
        """Take in the ids i64[reads] of rows, and gradients f32[reads, columns]."""
        squares = gradient.double().square().cpu().numpy()
        self.count += len(squares)
        np.add.at(self.reads, ids.cpu().numpy(), 1.0)
        np.add.at(self.by_row, ids.cpu().numpy(), squares.sum(1))
        self.by_column = self.by_column + squares.sum(0)

    def merge(self, other: Self) -> None:
        self.count += other.count
        self.reads, self.by_row = self.reads + other.reads, self.by_row + other.by_row
        self.by_column = self.by_column + other.by_column

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        sums = {"reads": self.reads, "by_row": self.by_row, "by_column": self.by_column}
        return {"count": np.array([self.count]), **sums}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        return cls(int(arrays["count"][0]), arrays["reads"], arrays["by_row"], arrays["by_column"])
