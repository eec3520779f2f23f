"""How many of the inputs of a matrix are how small, and what would go with them? A histogram over powers of two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import numpy.typing as npt

from irlab.analysis import Doubles, RowAnalysis

if TYPE_CHECKING:
    import torch

_PER_OCTAVE: Final = 4
_LOWEST: Final = -24
_BINS: Final = 40 * _PER_OCTAVE
"""Bin i holds magnitudes from 2^(i / 4 - 24) on; the first one smaller ones too, the last one larger ones."""

EDGES: Final = 2.0 ** (np.arange(1, _BINS) / _PER_OCTAVE + _LOWEST)
"""Where one bin gives way to the next: f64[bins - 1]."""


class InputMagnitudes(RowAnalysis):
    """Per bin of magnitudes, how many inputs of a matrix fall in it, f64[bins], and per input channel their sum and the
    sum of their squares, f64[bins, in]. `count` is the number of rows."""

    name = "input-magnitudes"

    def __init__(self, count: int, numbers: Doubles, sums: Doubles, squares: Doubles) -> None:
        self.count, self.numbers, self.sums, self.squares = count, numbers, sums, squares

    @classmethod
    def empty(cls, width: int) -> Self:
        return cls(0, np.zeros(_BINS), np.zeros((_BINS, width)), np.zeros((_BINS, width)))

    def add(self, x: torch.Tensor) -> None:
        import torch

        places = torch.log2(x.abs().clamp(min=2.0**_LOWEST)).sub_(_LOWEST).mul_(_PER_OCTAVE)
        bins = places.long().clamp_(0, _BINS - 1)
        columns = torch.arange(x.shape[1], device=x.device)
        flat = (bins * x.shape[1] + columns).reshape(-1)
        sums = torch.zeros(2, _BINS * x.shape[1], dtype=torch.float64, device=x.device)
        for total, values in zip(sums, (x.double(), x.double().square())):
            total.index_add_(0, flat, values.reshape(-1))
        self.count += len(x)
        self.sums = self.sums + sums[0].reshape(_BINS, -1).cpu().numpy()
        self.squares = self.squares + sums[1].reshape(_BINS, -1).cpu().numpy()
        self.numbers = self.numbers + torch.bincount(bins.reshape(-1), minlength=_BINS).double().cpu().numpy()

    def merge(self, other: Self) -> None:
        self.count += other.count
        self.numbers, self.sums = self.numbers + other.numbers, self.sums + other.sums
        self.squares = self.squares + other.squares

    def divided(self, by: Doubles) -> Self:
        # Bins are moved by whole numbers of them: off by half a bin at most.
        moved = np.rint(-np.log2(by) * _PER_OCTAVE).astype(int)
        rows = np.clip(np.arange(_BINS)[:, None] + moved, 0, _BINS - 1)
        sums, squares = np.zeros_like(self.sums), np.zeros_like(self.squares)
        np.add.at(sums, (rows, np.arange(len(by))), self.sums / by)
        np.add.at(squares, (rows, np.arange(len(by))), self.squares / by**2)
        mean = float(np.rint(moved.mean()))
        numbers = np.zeros_like(self.numbers)
        np.add.at(numbers, np.clip(np.arange(_BINS) + int(mean), 0, _BINS - 1), self.numbers)
        return type(self)(self.count, numbers, sums, squares)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"count": np.array([self.count]), "numbers": self.numbers, "sums": self.sums, "squares": self.squares}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        return cls(int(arrays["count"][0]), arrays["numbers"], arrays["sums"], arrays["squares"])

    def threshold(self, share: float) -> float:
        """The magnitude below which `share` of the inputs lie: between edges, numbers are taken to lie evenly."""
        if share <= 0:
            return 0.0
        below = np.concatenate([[0.0], np.cumsum(self.numbers)]) / max(1.0, float(self.numbers.sum()))
        edges = np.concatenate([[0.0], EDGES, [2 * EDGES[-1]]])
        return float(np.interp(share, below, edges))

    def lost(self, share: float, gram: Doubles) -> float:
        """The share of the output's energy that goes with the smallest `share` of the inputs, for gram = W^T W,
        f64[in, in]: of what they are on average, and of what they are beyond, channels taken to be independent. (What
        an activation function leaves small is of one sign: together it is large.)"""
        below = np.concatenate([[0.0], np.cumsum(self.numbers)]) / max(1.0, float(self.numbers.sum()))
        position = float(np.interp(share, below, np.arange(_BINS + 1)))
        return self._energy(position, gram) / (self._energy(_BINS, gram) or 1.0)

    def _energy(self, bins: float, gram: Doubles) -> float:
        """Of the output for inputs in the first `bins` bins alone."""
        whole = int(bins)
        weights = np.zeros(_BINS)
        weights[:whole] = 1
        if whole < _BINS:
            weights[whole] = bins - whole
        mean, square = weights @ self.sums / max(1, self.count), weights @ self.squares / max(1, self.count)
        beyond = np.maximum(square - mean**2, 0)
        return float(mean @ gram @ mean + np.diagonal(gram) @ beyond)
