"""How do most encodings work? A code picks a level, and each group of columns has a scale (and more) for the levels."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..floats import as_f32
from .base import AnyArray, Codes, Encoding, Floats
from .grid import Extent, Grid, Levels, Points


@dataclass(frozen=True)
class Integers(Levels):
    """The integers lowest..highest; a code is the number itself."""

    lowest: int
    highest: int

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        return np.dtype(np.int8 if self.lowest < 0 else np.uint8)

    def nearest(self, steps: Floats) -> AnyArray:
        np.rint(steps, out=steps)
        np.clip(steps, np.float32(self.lowest), np.float32(self.highest), out=steps)
        return steps.astype(self.dtype)

    def values(self, codes: AnyArray) -> Floats:
        return codes.astype(np.float32)


class LevelEncoding(Encoding):
    """Base of the encodings whose numbers are levels under parameters; they can be rounded to column by column."""

    row_parts: ClassVar[tuple[str, ...]] = ()
    """The parts that belong to a row, whatever its columns."""

    @abstractmethod
    def unit(self, columns: int) -> int:
        """The columns, in rows of `columns`, whose parameters are chosen together."""

    @abstractmethod
    def choose(self, x: Floats, importance: Floats | None, extent: Extent | None) -> Points:
        """The best parameters found for x: f32[rows, n], n columns in whole units. Raises InputError for NaN,
        infinities, and numbers that the parameters cannot reach."""

    @abstractmethod
    def split(self, codes: Codes) -> tuple[AnyArray, Points]:
        """The codes of single numbers, [rows, columns], and what they stand for."""

    def assemble(self, numbers: AnyArray, parts: Codes) -> Codes:
        """The inverse of `split`: `numbers` are codes [rows, columns]."""
        return {"codes": numbers, **parts}

    def grid(self, rows: int, columns: int, importance: Floats | None = None, extent: Extent | None = None) -> Grid:
        return Grid(self, rows, columns, importance, extent)

    def encode(self, rows: AnyArray, importance: Floats | None = None, extent: Extent | None = None) -> Codes:
        self.check_shape(rows.shape)
        flat = np.ascontiguousarray(as_f32(rows)).reshape(-1, rows.shape[-1])
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
        points = self.choose(flat, importance, extent)
        return _with_lead(self.assemble(points.nearest(flat), points.parts), rows.shape[:-1])

    def decode(self, codes: Codes) -> Floats:
        lead = next(iter(codes.values())).shape[:-1]
        numbers, points = self.split({name: part.reshape(-1, part.shape[-1]) for name, part in codes.items()})
        values = points.values(numbers)
        return values.reshape(*lead, values.shape[-1])


def _with_lead(codes: Codes, lead: tuple[int, ...]) -> Codes:
    return {name: part.reshape(*lead, part.shape[-1]) for name, part in codes.items()}


def extent_of(x: npt.NDArray[Any]) -> Extent:
    """The extent of x: floats[...]. Raises InputError for NaN and infinities."""
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("NaN or infinite numbers cannot be encoded")
    return Extent(low, high)
