"""Which scale of a group of integers loses least? A search around the scale that just spans the group.

For each group x and candidate scale s the codes are q = clip(round(x / s)), and the best scale for these codes is the
least-squares one, sum(w x q) / sum(w q^2). Candidates differ in how many steps they lay over the group: fewer than the
grid has (some codes stay unused) or more (the extremes are clipped). The best is refined by rounding and fitting in
turn, and kept only where it beats plain rounding. The idea is that of `make_qx_quants` in llama.cpp's ggml-quants.c.

Groups are searched a block at a time, which stays in cache, and scaled to their extreme, so that nothing over- or
underflows. Rounding and summing, most of the work, is compiled (kernels/integers.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import InputError

AnyArray = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_BLOCK_ELEMENTS: Final = 1 << 17
_REFINEMENTS: Final = 2
_SPANS: Final = {
    2: (0.6, 2.1, 14),
    3: (0.75, 1.75, 14),
    4: (0.75, 1.5, 14),
    5: (0.8, 1.25, 14),
    6: (0.86, 1.1, 12),
    8: (1.0, 1.02, 4),
}
"""By bits: where the best number of steps lies, relative to the full grid, for nearly all groups of 32 of a trained
model, and how many numbers of steps to try in there."""

_LEAST_WHOLE: Final = {2: 0.5, 3: 0.5, 4: 0.5, 5: 0.75, 6: 0.8, 8: 0.9}
"""By bits: from where on every whole number of steps is tried, relative to the full grid."""


_ROUNDING: Final = np.float32(1e-6)
"""What a sum in f32 may be off, relatively: charged, so that no difference of sums looks better than an exact zero."""


@dataclass(frozen=True)
class IntegerGrid:
    """The codes lowest..highest of an integer encoding of `bits`, and the NumPy dtype in which scales are stored."""

    bits: int
    lowest: int
    highest: int
    symmetric: bool
    scale: np.dtype[Any]

    @property
    def full(self) -> int:
        """The steps of plain rounding: from zero to the extreme or, asymmetric, from end to end."""
        return -self.lowest if self.symmetric else self.highest


@lru_cache
def candidates(grid: IntegerGrid, size: int) -> tuple[float, ...]:
    """The numbers of steps to try for groups of `size` numbers, the full grid first. Whole numbers are among them, so
    that what is on such a grid already is found again (under half the grid too: in twice the steps)."""
    low, high, count = _SPANS[grid.bits]
    # The more numbers a group has, the further its extreme stands out.
    widening = 1.0 if size <= 64 else 1.5 if size <= 256 else 2.5
    spread = np.geomspace(low * grid.full, (1 + (high - 1) * widening) * grid.full, count)
    whole = np.arange(int(_LEAST_WHOLE[grid.bits] * grid.full), grid.full + 1)
    steps = {round(float(step), 3) for step in (*spread, *whole)}
    if grid.symmetric and grid.bits == 2:
        # Two codes on one side of zero, one on the other: it may pay to turn the short side to the extreme.
        steps |= {-step for step in steps if step < 1.7 * grid.full}
    return tuple(sorted(steps, key=lambda step: abs(step - grid.full)))


def search_scales(groups: Floats, grid: IntegerGrid, importance: Floats | None) -> tuple[AnyArray, AnyArray | None]:
    """The best scales and zero points found for groups f32[n, size].

    `importance`: f32[m, size], row i % m for group i: the weights of the squared errors. None stands
    for sqrt(mean(x^2) + x^2) within each group: what is large matters more in language models (all alike, the default
    of MSE searches, can end up worse than plain rounding). No group has a larger weighted error than by plain rounding.
    Returns scales[n] and, for an asymmetric grid, zeros u8[n].
    Raises InputError for NaN, infinities, and numbers whose scale cannot be stored.
    """
    n, size = groups.shape
    scales = np.empty(n, grid.scale)
    zeros = None if grid.symmetric else np.empty(n, np.uint8)
    step = max(1, _BLOCK_ELEMENTS // size)
    for start in range(0, n, step):
        at = slice(start, min(n, start + step))
        weights = None
        if importance is not None:
            weights = importance[np.arange(at.start, at.stop) % len(importance)]
        block = _Block(groups[at], grid, weights)
        scales[at], zero = block.search()
        if zeros is not None:
            zeros[at] = zero
    return scales, zeros


def _inverse(scale: Floats) -> Floats:
    """1 / scale, or 0 where that is not finite: all codes are zero then."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse: Floats = np.float32(1) / scale
    inverse[~np.isfinite(inverse)] = 0
    return inverse


class _Block:
    """The search for groups x[n, size], all at once.

    It sees y = x / unit with abs(y) <= 1; on symmetric grids the unit carries the sign of the extreme, so that the
    longer side of the grid (codes below zero, under a negative scale) always lies where the extreme is. Codes are held
    less their zero point, and scales as scales of y.
    """

    def __init__(self, x: Floats, grid: IntegerGrid, importance: Floats | None) -> None:
        self.grid = grid
        columns = np.ascontiguousarray(x.T)  # NumPy reduces these several times faster
        top, bottom = columns.max(0), columns.min(0)
        if not (np.isfinite(top) & np.isfinite(bottom)).all():
            raise InputError("NaN or infinite numbers cannot be encoded")
        unit = np.where(-bottom > top, bottom, top)
        self.unit = unit if grid.symmetric else np.abs(unit)
        self.unit[unit == 0] = 1
        self.y: Floats = np.ascontiguousarray(x / self.unit[:, None], np.float32)
        self.bottom = np.minimum(bottom, 0) / self.unit
        self.top = np.maximum(top, 0) / self.unit
        self.spread = self.top - self.bottom
        self.spread[self.spread == 0] = 1
        if importance is None:
            squares = np.einsum("nk,nk->n", self.y, self.y)[:, None] / np.float32(self.y.shape[1]) + self.y * self.y
            importance = np.sqrt(squares, out=squares)
        self.importance: Floats = np.ascontiguousarray(importance, np.float32)
        self.ones = np.ones_like(self.spread)

    def search(self) -> tuple[AnyArray, AnyArray]:
        """The best scales[n] found, and their zero points[n]."""
        inverse, kept_zero = self.lay(self.grid.full)
        kept = self.store(_inverse(inverse))
        if not np.isfinite(kept).all():
            largest = float(np.abs(self.unit).max())
            raise InputError(f"numbers as large as {largest:.3g} do not fit scales of {self.grid.scale}")
        error, _ = self.measure(kept, kept_zero)
        scale, zero = self.best_candidate()
        for _ in range(_REFINEMENTS):
            stored = self.store(scale)
            tried, scale = self.measure(stored, zero)
            better = tried < error
            kept, kept_zero = np.where(better, stored, kept), np.where(better, zero, kept_zero)
            error = np.where(better, tried, error)
        return kept, kept_zero

    def best_candidate(self) -> tuple[Floats, Floats]:
        """The fitted scale and the zero point that lose least once the scale is stored."""
        least = np.full(self.unit.shape, np.inf, np.float32)
        best, best_zero = np.zeros_like(least), np.zeros_like(least)
        for steps in candidates(self.grid, self.y.shape[1]):
            inverse, zero = self.lay(steps)
            error, excess, energy = self.sums(inverse, zero, inverse, self.ones)
            fit = excess / energy
            scale = (1 + fit) / inverse
            # The error of these codes is least at the fitted scale, and grows with the square of the distance from it.
            off = self.load(self.store(scale)) - scale
            error += error * _ROUNDING - excess * fit
            error = error / (inverse * inverse) + off * off * energy
            better = error < least
            least = np.where(better, error, least)
            best = np.where(better, scale, best)
            best_zero = np.where(better, zero, best_zero)
        return best, best_zero

    def measure(self, stored: AnyArray, zero: Floats) -> tuple[Floats, Floats]:
        """The squared error of each group under a stored scale, and the scale fitted to the codes it gives."""
        scale = self.load(stored)
        storable = np.isfinite(scale)
        error, excess, energy = self.sums(_inverse(scale), zero, self.ones, np.where(storable, scale, np.float32(0)))
        return np.where(storable, error, np.float32(np.inf)), scale + excess / energy

    def lay(self, steps: float) -> tuple[Floats, Floats]:
        """The inverse scale and the zero point that lay `steps` steps over each group."""
        if self.grid.symmetric:
            return np.full_like(self.ones, -steps), np.zeros_like(self.ones)
        inverse = np.float32(steps) / self.spread
        # What is clipped, or left unused, is shared between both ends.
        centred = (self.grid.highest - (self.top + self.bottom) * inverse) / 2
        return inverse, np.clip(np.rint(centred), 0, self.grid.highest)

    def sums(self, inverse: Floats, zero: Floats, by: Floats, step: Floats) -> tuple[Floats, Floats, Floats]:
        """Over each group, with the codes q under an inverse scale and a zero point: what is left of `by` y after
        `step` q, squared and times q, and q^2 (1 where all codes are zero), all weighted."""
        from .kernels import code_sums

        sums = tuple(np.empty_like(self.ones) for _ in range(3))
        lowest, highest = self.grid.lowest - zero, self.grid.highest - zero
        code_sums(self.y, self.importance, inverse, lowest, highest, by, step, *sums)
        error, excess, energy = sums
        return error, excess, energy

    def store(self, scale: Floats) -> AnyArray:
        """The scale of x, rounded to how it is stored; infinite where that cannot hold it."""
        with np.errstate(over="ignore"):
            return np.asarray((scale * self.unit).astype(self.grid.scale))

    def load(self, stored: AnyArray) -> Floats:
        """The scale of y behind a stored one."""
        return np.asarray(stored.astype(np.float32) / self.unit)
