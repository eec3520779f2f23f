"""Facts by the name of the weight, as passes are handed them; they follow what passes change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from .base import A, Analysis, Columns, Doubles, RowAnalysis

if TYPE_CHECKING:
    from ..weights import WeightSymbol


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
