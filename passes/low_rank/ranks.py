"""How many ranks does each matrix get? As many as lose least together, within the parameters that may stay.

The squared singular values that are cut off, in the metric in which a method measures errors, are what it loses; how
much the model minds, matrix by matrix, is a weight on that (cf. SVD-LLM V2, arXiv 2503.12340). A matrix that would not
become smaller stays whole and loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from irlab.passes.mixed_precision.knapsack import Options, choose

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """A matrix [rows, columns] and the squares of its singular values, descending, each as much as the model minds."""

    rows: int
    columns: int
    squares: Doubles

    def ranks(self, multiple: int) -> list[int]:
        """The ranks that make the matrix smaller."""
        return thinning_ranks(self.rows, self.columns, multiple)

    def loss(self, rank: int) -> float:
        """What is cut off."""
        return float(self.squares[rank:].sum())


def thinning_ranks(rows: int, columns: int, multiple: int) -> list[int]:
    """The multiples of `multiple` at which two factors are smaller than the matrix."""
    most = (rows * columns - 1) // (rows + columns)
    return list(range(multiple, most + 1, multiple))


def uniform(shape: tuple[int, ...], ratio: float, multiple: int) -> int:
    """The rank at which at least `ratio` of the parameters go; 0 where the matrix stays whole, because none does."""
    rows, columns = shape
    able = [r for r in thinning_ranks(rows, columns, multiple) if r * (rows + columns) <= (1 - ratio) * rows * columns]
    return able[-1] if able and ratio else 0


def allocated(spectra: Mapping[str, Spectrum], ratio: float, multiple: int) -> dict[str, int] | None:
    """The ranks, 0 for a matrix that stays whole, that lose least while `ratio` of the parameters go; None where so
    many cannot go."""
    names = list(spectra)
    classes, ranks = [], []
    for name in names:
        spectrum = spectra[name]
        able = [*spectrum.ranks(multiple), 0]
        size = spectrum.rows * spectrum.columns
        costs = [float(r * (spectrum.rows + spectrum.columns) if r else size) for r in able]
        classes.append(Options(np.array(costs), np.array([spectrum.loss(r) if r else 0.0 for r in able])))
        ranks.append(able)
    total = sum(spectrum.rows * spectrum.columns for spectrum in spectra.values())
    chosen = choose(classes, (1 - ratio) * total)
    return None if chosen is None else {name: able[i] for name, able, i in zip(names, ranks, chosen)}


def holding(spectrum: Spectrum, energy: float, multiple: int) -> int:
    """The least rank that keeps a share `energy` of the squares; 0 where no thinning one does."""
    enough = spectrum.squares.sum() * (1 - energy)
    return next((rank for rank in spectrum.ranks(multiple) if spectrum.loss(rank) <= enough), 0)
