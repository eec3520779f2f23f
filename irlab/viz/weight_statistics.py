"""How are the numbers of a weight distributed? Range, zeros, a histogram, and the error against what it was before.

Rows are read in small chunks; of a large weight, evenly spaced ones, which is said in the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..weights import Recipe, WeightSymbol, static_shape

Extent = Literal["off", "sample", "full"]
"""How much of each weight is read."""

SAMPLE: Final = 1 << 17
"""Numbers that are read of a weight when it is sampled: enough for a histogram of `BINS` to be steady."""

BLOCKS: Final = 16
"""A sample is taken in so many places of the weight."""

WHOLE_LIMIT: Final = 1 << 25
"""Weights of more numbers are left alone where a few rows cannot be made without all of them."""

BINS: Final = 48

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WeightStatistics:
    """Of the `seen` numbers of a weight that were read. `histogram` divides [-reach, reach] evenly.

    `zeros` and `not_finite` are counts; all else is about finite numbers. `error` is the Frobenius norm of what changed
    against the reference over that of the reference. `missing` says why there is nothing to say.
    """

    seen: int = 0
    minimum: float = 0.0
    maximum: float = 0.0
    mean: float = 0.0
    deviation: float = 0.0
    zeros: int = 0
    not_finite: int = 0
    reach: float = 0.0
    histogram: tuple[int, ...] = ()
    error: float | None = None
    missing: str = ""


def measure(symbol: WeightSymbol, extent: Extent, reference: WeightSymbol | None = None) -> WeightStatistics:
    """The statistics of a weight, against `reference` of the same shape if there is one."""
    if extent == "off":
        return WeightStatistics(missing="left out on request (--dump-weights=off)")
    recipe = symbol.recipe
    size = math.prod(static_shape(symbol.type))
    if not recipe.row_local and size > WHOLE_LIMIT:
        return WeightStatistics(missing=f"all {size:,} numbers would have to be made to see a few")
    gathered = _Gathered()
    try:
        for start, stop in _spans(recipe, size, extent):
            rows = _numbers(recipe, start, stop)
            gathered.add(rows, None if reference is None else _numbers(reference.recipe, start, stop))
    except (InputError, OSError) as error:
        return WeightStatistics(missing=f"no values: {error}")
    return gathered.result()


def _numbers(recipe: Recipe, start: int, stop: int) -> Numbers:
    return np.asarray(recipe.rows(start, stop)).astype(np.float64).ravel()


def _spans(recipe: Recipe, size: int, extent: Extent) -> Iterator[tuple[int, int]]:
    """The ranges of rows to read."""
    rows = recipe.row_count
    wanted = max(1, SAMPLE * rows // max(1, size))
    if extent == "full" or wanted >= rows or not recipe.row_local:
        yield from recipe.chunks(8 << 20)
        return
    blocks = min(BLOCKS, wanted)
    for block in range(blocks):
        start = block * (rows - wanted // blocks) // max(1, blocks - 1)
        yield start, start + wanted // blocks


class _Gathered:
    """Adds up chunks. The histogram doubles its reach, joining bins in pairs, when a number lies outside."""

    def __init__(self) -> None:
        self._seen = self._zeros = self._not_finite = 0
        self._sum = self._squares = 0.0
        self._minimum, self._maximum = math.inf, -math.inf
        self._reach = 0.0
        self._bins: npt.NDArray[np.int64] = np.zeros(BINS, np.int64)
        self._error: float | None = None
        self._reference = 0.0

    def add(self, numbers: Numbers, reference: Numbers | None) -> None:
        self._seen += numbers.size
        if reference is not None:
            self._error = (self._error or 0.0) + float(np.square(numbers - reference).sum())
            self._reference += float(np.square(reference).sum())
        finite = numbers[np.isfinite(numbers)]
        self._not_finite += numbers.size - finite.size
        if not finite.size:
            return
        self._zeros += int(finite.size - np.count_nonzero(finite))
        self._sum += float(finite.sum())
        self._squares += float(np.square(finite).sum())
        self._minimum, self._maximum = min(self._minimum, finite.min()), max(self._maximum, finite.max())
        self._widen(max(-self._minimum, self._maximum))
        self._bins += np.histogram(finite, BINS, (-self._reach, self._reach))[0]

    def _widen(self, needed: float) -> None:
        if not self._reach:
            self._reach = needed or 1.0
        while self._reach < needed:
            # Pairs about the middle: a quarter of the new bins on each side is empty.
            joined = self._bins.reshape(-1, 2).sum(axis=1)
            self._bins = np.pad(joined, BINS // 4)
            self._reach *= 2

    def result(self) -> WeightStatistics:
        count = self._seen - self._not_finite
        if not count:
            return WeightStatistics(self._seen, not_finite=self._not_finite, missing="no finite number")
        mean = self._sum / count
        error = None
        if self._error is not None and math.isfinite(self._error) and self._reference:
            error = math.sqrt(self._error / self._reference)
        return WeightStatistics(
            seen=self._seen,
            minimum=float(self._minimum),
            maximum=float(self._maximum),
            mean=mean,
            deviation=math.sqrt(max(0.0, self._squares / count - mean * mean)),
            zeros=self._zeros,
            not_finite=self._not_finite,
            reach=self._reach,
            histogram=tuple(self._bins.tolist()),
            error=error,
        )
