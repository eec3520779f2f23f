"""What is known about a model from running it? Statistics per weight, collected layer by layer, shared and cached.

    statistics = ctx.analysis(InputHessian)           # in a pass; collected once for a module and calibration
    statistics["model.layers.0.mlp.up_proj.weight"].matrix

A pass that changes weights by what it learns derives from `LayerPass` (sweep.py) and is handed the statistics of each
layer as the layers before it have become.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import IRError

if TYPE_CHECKING:
    import torch

    from .weights import WeightSymbol

A = TypeVar("A", bound="Analysis")

Doubles = npt.NDArray[np.float64]
Columns = npt.NDArray[np.intp]

_HESSIAN_ROWS = 1024
"""Products are summed in f32 over so many rows, then in f64."""


class Analysis(ABC):
    """Facts about one weight matrix [out, in]. Subclasses say how they are kept: arrays by name."""

    name: ClassVar[str]

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what another one has seen."""

    @abstractmethod
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What is kept."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The inverse of `arrays`."""


class RowAnalysis(Analysis):
    """Facts about rows of activations, added as they come."""

    @classmethod
    @abstractmethod
    def empty(cls, width: int) -> Self:
        """Facts about no rows, of `width` numbers each."""

    @abstractmethod
    def add(self, x: torch.Tensor) -> None:
        """Take in f32[rows, width]."""

    @abstractmethod
    def divided(self, by: Doubles) -> Self:
        """The facts about the rows x / by; `by` is f64[width]."""

    def taken(self, columns: Columns) -> Self:
        """The facts about these columns of the rows alone. Raises IRError where that cannot be told."""
        raise IRError(f"{self.name} cannot tell of a part of the inputs")


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


class InputHessian(RowAnalysis):
    """E[x x^T] over the rows x that a weight reads: f64[in, in], half the Hessian of its output's squared error.

    Weights that read the same value share one object.
    """

    name = "input-hessian"

    def __init__(self, count: int, total: Doubles) -> None:
        self.count, self._total = count, total

    @property
    def matrix(self) -> Doubles:
        """E[x x^T], a new array."""
        return self._total / max(1, self.count)

    @property
    def diagonal(self) -> Doubles:
        """The mean square of each input: f64[in]."""
        return np.diagonal(self._total) / max(1, self.count)

    @classmethod
    def empty(cls, width: int) -> Self:
        return cls(0, np.zeros((width, width)))

    def add(self, x: torch.Tensor) -> None:
        import torch

        total = torch.from_numpy(self._total)
        for start in range(0, len(x), _HESSIAN_ROWS):
            rows = x[start : start + _HESSIAN_ROWS]
            total += (rows.T @ rows).cpu()
        self.count += len(x)

    def merge(self, other: Self) -> None:
        self.count += other.count
        self._total = self._total + other._total

    def divided(self, by: Doubles) -> Self:
        return type(self)(self.count, self._total / by / by[:, None])

    def taken(self, columns: Columns) -> Self:
        return type(self)(self.count, self._total[np.ix_(columns, columns)])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"count": np.array([self.count]), "total": self._total}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        return cls(int(arrays["count"][0]), arrays["total"])


class OriginalInputs(Analysis):
    """E[x0 x^T] over pairs of rows: x0 is what a weight read before a sweep changed anything, x what it reads now.

    f64[in, in]. It is the Hessian as long as nothing has changed. With it a weight can be fitted to what the original
    one computed, so that it makes up for the errors of the weights before it (see reconstruction.py).
    """

    name = "original-inputs"

    def __init__(self, count: int, total: Doubles) -> None:
        self.count, self._total = count, total

    @property
    def matrix(self) -> Doubles:
        """E[x0 x^T], a new array."""
        return self._total / max(1, self.count)

    @classmethod
    def empty(cls, width: int) -> Self:
        return cls(0, np.zeros((width, width)))

    def add(self, original: torch.Tensor, x: torch.Tensor) -> None:
        """Take in f32[rows, width], twice."""
        import torch

        total = torch.from_numpy(self._total)
        for start in range(0, len(x), _HESSIAN_ROWS):
            rows = slice(start, start + _HESSIAN_ROWS)
            total += (original[rows].T @ x[rows]).cpu()
        self.count += len(x)

    def merge(self, other: Self) -> None:
        """Take in what another one has seen."""
        self.count += other.count
        self._total = self._total + other._total

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"count": np.array([self.count]), "total": self._total}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        return cls(int(arrays["count"][0]), arrays["total"])


class GradientAnalysis(Analysis):
    """Facts about gradients of the loss, which is that of tokens drawn from the predictions (gradients.py), summed over
    positions. All kinds are collected together, because a walk backwards is dear."""

    @classmethod
    @abstractmethod
    def empty(cls, rows: int, columns: int) -> Self:
        """Facts about a weight [rows, columns] that was not read."""


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


class ByWeight(Mapping[str, A], Generic[A]):
    """Facts by the name of the weight. A weight that is read in several places has those of all of them."""

    def __init__(
        self,
        kind: type[A],
        taps: Mapping[str, A],
        weights: Mapping[str, tuple[str, ...]],
        changes: Mapping[str, Rescaled] = {},
    ) -> None:
        self.kind, self.taps, self.weights, self._changes = kind, taps, weights, changes

    def rescaled(self, changes: Mapping[str, Rescaled]) -> ByWeight[A]:
        """The facts after the inputs of some weights were divided, or some of them left out."""
        return ByWeight(self.kind, self.taps, self.weights, changes) if changes else self

    def __getitem__(self, weight: str) -> A:
        found = self._found(weight)
        change = self._changes.get(weight)
        if change is None or not isinstance(found, RowAnalysis):
            return found
        left = found if change.left is None else found.taken(change.left)
        return left.divided(change.columns) if isinstance(change.columns, np.ndarray) else left

    def _found(self, weight: str) -> A:
        first, *rest = self.weights[weight]
        found = self.taps[first]
        if rest:
            merged = type(found).from_arrays(found.arrays())
            for tap in rest:
                merged.merge(self.taps[tap])
            return merged
        return found

    def sharing(self) -> list[list[str]]:
        """The weights in groups that read the same values."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for weight, taps in self.weights.items():
            groups.setdefault(taps, []).append(weight)
        return list(groups.values())

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@dataclass
class Rescaled:
    """How a weight was changed without changing what the model computes: its rows were divided by `rows`, and its
    columns multiplied by `columns`, because its inputs were divided by them. f64[out, 1] and f64[in], or 1. Of the
    inputs that statistics were collected of only those at `left` are left (None: all)."""

    rows: Doubles | float = 1.0
    columns: Doubles | float = 1.0
    left: Columns | None = None


class LayerStatistics:
    """What is known about the weights of one layer: `statistics[InputHessian]["model...weight"].matrix`.

    A pass that rescales channels says so, and what is read afterwards is about the inputs as they are then. `before`
    has the weights as they were before any pass of the sweep.
    """

    def __init__(
        self, facts: Mapping[type[Analysis], ByWeight[Any]], before: Mapping[str, WeightSymbol] = MappingProxyType({})
    ) -> None:
        self._facts = facts
        self.before = dict(before)
        self.rescaled: dict[str, Rescaled] = {}

    def __getitem__(self, kind: type[A]) -> ByWeight[A]:
        return self._facts[kind].rescaled(self.rescaled)

    def __contains__(self, kind: type[Analysis]) -> bool:
        return kind in self._facts

    def as_rescaled(self, weight: str, rows: Doubles, start: int = 0) -> Doubles:
        """Rows of `weight` from `start` on, as they were before the sweep, after what was rescaled since."""
        found = self.rescaled.get(weight, Rescaled())
        by = found.rows if isinstance(found.rows, float) else found.rows[start : start + len(rows)]
        return rows / by * found.columns

    def scale_columns(self, weight: str, by: Doubles) -> None:
        """Note that columns of `weight` were multiplied, and its inputs divided, by `by`, f64[in]."""
        found = self.rescaled.setdefault(weight, Rescaled())
        found.columns = found.columns * by

    def divide_rows(self, weight: str, by: Doubles) -> None:
        """Note that rows of `weight` were divided by `by`, f64[out]."""
        found = self.rescaled.setdefault(weight, Rescaled())
        found.rows = found.rows * by[:, None]

    def replace(self, symbol: WeightSymbol, left: Columns | None = None) -> None:
        """Note that a weight became `symbol`, of another shape: it counts as what it was before the sweep. `left`: the
        columns that are left of it."""
        old = self.rescaled.get(symbol.name, Rescaled())
        self.before[symbol.name] = symbol
        if left is None:
            self.rescaled.pop(symbol.name, None)
            return
        columns = old.columns[left] if isinstance(old.columns, np.ndarray) else old.columns
        self.rescaled[symbol.name] = Rescaled(1.0, columns, left if old.left is None else old.left[left])
