"""Onto which numbers can columns be rounded, once scales are chosen? What error-compensating methods (GPTQ) work on.

    grid = encoding.grid(rows, columns, importance)
    for start in range(0, columns, grid.unit):
        grid.fit(start, w[:, start : start + grid.unit])          # scales of a unit, from the weights as they are now
        for j in range(start, start + grid.unit):
            error = w[:, j] - grid.round(j, w[:, j])              # codes are recorded, decoded numbers come back
            ...                                                   # spread the error over the columns to come
    codes = grid.codes()

Fitting everything first (`encoding.fit(w, importance)`) gives static scales; columns may then be rounded in any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .levels import LevelEncoding

AnyArray = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Columns: TypeAlias = "int | slice | Sequence[int] | npt.NDArray[np.integer[Any]]"


class Extent(NamedTuple):
    """The smallest and the largest number of a whole tensor."""

    low: float
    high: float

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(-self.low, self.high)


class Levels(ABC):
    """The numbers that codes stand for, before scales: the same in every group."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Of codes."""

    @abstractmethod
    def nearest(self, steps: Floats) -> AnyArray:
        """The codes of the levels nearest to `steps`; f32[...] that may be overwritten."""

    @abstractmethod
    def values(self, codes: AnyArray) -> Floats:
        """The levels of `codes`, as a new array."""


@dataclass(frozen=True)
class Points:
    """The numbers that a few rows can take in a run of columns.

    Code q in group g of row r stands for (levels[q] - zero[r, g]) * scale[r, g] + offset[r, g], in f32 and in this
    order; None is 0. `scale`, `zero` and `offset` are f32[rows, groups]; `parts` are what is stored of them.
    """

    levels: Levels
    scale: Floats
    parts: dict[str, AnyArray]
    zero: Floats | None = None
    offset: Floats | None = None

    def nearest(self, x: Floats) -> AnyArray:
        """The codes of x: f32[rows, columns], columns in equal groups."""
        grouped = x.reshape(*self.scale.shape, -1)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            inverse = np.float32(1) / self.scale
            inverse[~np.isfinite(inverse)] = 0
            steps = grouped if self.offset is None else grouped - self.offset[..., None]
            steps = steps * inverse[..., None]
        if self.zero is not None:
            steps += self.zero[..., None]
        return self.levels.nearest(steps).reshape(x.shape)

    def values(self, codes: AnyArray) -> Floats:
        """The numbers f32[rows, columns] of `codes`."""
        numbers = self.levels.values(codes).reshape(*self.scale.shape, -1)
        if self.zero is not None:
            numbers -= self.zero[..., None]
        numbers *= self.scale[..., None]
        if self.offset is not None:
            numbers += self.offset[..., None]
        return numbers.reshape(codes.shape)

    def of_groups(self, groups: AnyArray) -> Points:
        """The points of these groups, in this order."""
        pick = [None if part is None else part[:, groups] for part in (self.scale, self.zero, self.offset)]
        scale, zero, offset = pick
        assert scale is not None
        return replace(self, scale=scale, zero=zero, offset=offset)


class Grid:
    """The numbers that rows of an encoding can take, chosen unit by unit, and the codes given so far.

    rows, columns: the shape of the matrix.  importance: f32[columns] or None, as for `Encoding.encode`.
    """

    def __init__(
        self, encoding: LevelEncoding, rows: int, columns: int, importance: Floats | None, extent: Extent | None
    ) -> None:
        encoding.check_shape((rows, columns))
        self.encoding, self.rows, self.columns = encoding, rows, columns
        self.importance, self.extent = importance, extent
        # What belongs to the whole tensor is known once all of it has been seen.
        self.unit = columns if encoding.tensor_wide and extent is None else encoding.unit(columns)
        """Columns that are fitted together: a group, a super-block, or a whole row."""
        self._fits: dict[int, Points] = {}
        self._points: Points | None = None
        self._codes: AnyArray = np.empty(0)

    def fit(self, start: int, values: Floats) -> None:
        """Choose the parameters of the units that cover columns [start:start + n] from `values`: f32[rows, n]. Raises
        InputError for numbers that cannot be encoded, ValueError where that is not a run of whole units."""
        width = values.shape[1]
        if start % self.unit or width % self.unit or not width or start + width > self.columns:
            raise ValueError(f"columns {start} to {start + width} are no run of whole units of {self.unit} columns")
        importance = None if self.importance is None else self.importance[start : start + width]
        found = self.encoding.choose(np.ascontiguousarray(values, np.float32), importance, self.extent)
        groups = found.scale.shape[1]
        first = start * groups // width
        if self._points is None:
            shape = (self.rows, self.columns * groups // width)
            # NaN marks groups without a fit.
            blank = [None if p is None else np.full(shape, np.nan, np.float32) for p in (found.scale, found.zero)]
            offset = None if found.offset is None else np.zeros(shape, np.float32)
            assert blank[0] is not None
            self._points = Points(found.levels, blank[0], {}, blank[1], offset)
            self._codes = np.zeros((self.rows, self.columns), found.levels.dtype)
        for whole, part in zip(_parameters(self._points), _parameters(found)):
            if whole is not None and part is not None:
                whole[:, first : first + groups] = part
        self._fits[start] = found

    def round(self, columns: Columns, values: Floats) -> Floats:
        """Round `values`, f32[rows] for one column or f32[rows, n], to the numbers that the fitted units have there,
        and record their codes. Returns the rounded numbers in the same shape."""
        indices = np.atleast_1d(np.arange(self.columns)[columns])
        points = self._points
        if points is None:
            raise ValueError("no column has been fitted")
        groups = indices // (self.columns // points.scale.shape[1])
        local = points.of_groups(groups)
        if np.isnan(local.scale[:1]).any():
            raise ValueError(f"column {int(indices[np.isnan(local.scale[0])][0])} has not been fitted")
        codes = local.nearest(np.ascontiguousarray(values, np.float32).reshape(self.rows, len(indices)))
        self._codes[:, indices] = codes
        return local.values(codes).reshape(values.shape)

    def codes(self) -> dict[str, AnyArray]:
        """The codes given so far, as `Encoding.encode` returns them; columns that were never rounded have the code 0.
        Raises ValueError where a unit has not been fitted."""
        runs = [self._fits[start] for start in sorted(self._fits)]
        if self._points is None or np.isnan(self._points.scale[:1]).any():
            raise ValueError("some columns have not been fitted")
        parts = {
            name: part
            if name in self.encoding.row_parts
            else np.concatenate([run.parts[name] for run in runs], axis=-1)
            for name, part in runs[0].parts.items()
        }
        return dict(self.encoding.assemble(self._codes, parts))


def _parameters(points: Points) -> tuple[Floats | None, ...]:
    return points.scale, points.zero, points.offset
