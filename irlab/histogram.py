"""How large are the numbers that a weight reads? A histogram on a logarithmic grid, from which ranges are chosen.

The grid is fixed (16 bins an octave, magnitudes from 2^-24 to 2^16, negative and positive numbers apart), so that
counts simply add up over batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from .analysis import Doubles, RowAnalysis
from .errors import InputError

if TYPE_CHECKING:
    import torch

BINS_PER_OCTAVE: Final = 16
_LOWEST_OCTAVE, _OCTAVES = -24, 40
BINS: Final = BINS_PER_OCTAVE * _OCTAVES

Choice = Literal["max", "percentile", "mse"]

_MSE_OCTAVES: Final = 8
"""How far below the largest magnitude a range is looked for."""


@dataclass(frozen=True)
class Range:
    """The numbers from `low` <= 0 to `high` >= 0 are told apart, what lies outside is cut."""

    low: float
    high: float


class InputHistogram(RowAnalysis):
    """How many of the numbers that a weight reads have which size: i64[2, bins], negative and positive ones, and the
    least and the largest of them."""

    name = "input-histogram"

    def __init__(self, counts: npt.NDArray[np.int64], low: float, high: float) -> None:
        self.counts, self.low, self.high = counts, low, high

    @classmethod
    def empty(cls, width: int) -> Self:
        return cls(np.zeros((2, BINS), np.int64), 0.0, 0.0)

    def add(self, x: torch.Tensor) -> None:
        import torch

        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        place = torch.log2(x.abs()).sub_(_LOWEST_OCTAVE).mul_(BINS_PER_OCTAVE).floor_().clamp_(0, BINS - 1).long()
        place += (x >= 0).long() * BINS
        self.counts = self.counts + torch.bincount(place.flatten(), minlength=2 * BINS).cpu().numpy().reshape(2, BINS)

    def merge(self, other: Self) -> None:
        self.counts = self.counts + other.counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def divided(self, by: Doubles) -> Self:
        raise InputError(
            "a histogram is of all channels together, and cannot follow some of them that were scaled",
            "let the pass that scales run before, separated by another pass",
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"counts": self.counts, "ends": np.array([self.low, self.high])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        low, high = arrays["ends"].tolist()
        return cls(arrays["counts"], low, high)

    def range(self, choice: Choice, percentile: float, integers: int, symmetric: bool) -> Range:
        """The range to hold in so many `integers`. "max": all of it; "percentile": all but the largest magnitudes, so
        that `percentile` per cent lie inside; "mse": that of the least squared error."""
        if choice == "max":
            top = float("inf")
        elif choice == "percentile":
            top = self._percentile(percentile)
        else:
            top = self._least_error(integers, symmetric)
        return self._cut(top, symmetric)

    def error(self, range: Range, integers: int) -> float:
        """The mean squared error of rounding to `integers` that span `range`, relative to the mean square."""
        centres = _CENTRES.astype(np.float64)
        step = (range.high - range.low) / (integers - 1)
        total = 0.0
        for counts, end in zip(self.counts, (-range.low, range.high)):
            # A number that is smaller than half a step becomes 0; others are off by up to half a step, evenly.
            inside = np.where(centres < step / 2, centres**2, step**2 / 12)
            total += float(counts @ np.where(centres <= end, inside, (centres - end) ** 2))
        power = float(self.counts.sum(0) @ centres**2)
        return total / power if power else 0.0

    def _cut(self, top: float, symmetric: bool) -> Range:
        low, high = max(self.low, -top), min(self.high, top)
        if symmetric:
            low, high = -max(-low, high), max(-low, high)
        return Range(low, high)

    def _percentile(self, percentile: float) -> float:
        reached = np.cumsum(self.counts.sum(0))
        index = int(np.searchsorted(reached, reached[-1] * percentile / 100))
        return float(2.0 ** (_LOWEST_OCTAVE + (min(index, BINS - 1) + 1) / BINS_PER_OCTAVE))

    def _least_error(self, integers: int, symmetric: bool) -> float:
        largest = max(-self.low, self.high)
        tops = largest * 2.0 ** -(np.arange(_MSE_OCTAVES * BINS_PER_OCTAVE) / BINS_PER_OCTAVE)
        return float(min(tops, key=lambda top: self.error(self._cut(float(top), symmetric), integers)))


_CENTRES: Final = 2.0 ** (_LOWEST_OCTAVE + (np.arange(BINS) + 0.5) / BINS_PER_OCTAVE)
"""The magnitude that stands for a bin."""
