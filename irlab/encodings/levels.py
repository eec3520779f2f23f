"""How do most encodings work? A code picks a level, and each group of columns has a scale (and more) for the levels."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..floats import as_f32
from .base import AnyArray, Codes, Encoding, Floats
from .grid import Extent, Grid, Levels, Points

_BLOCK_ELEMENTS: Final = 1 << 17
"""Numbers encoded at a time: they stay in cache through the search, the rounding and the packing."""


@dataclass(frozen=True)
class Integers(Levels):
    """The integers lowest..highest; a code is the number itself."""

    lowest: int
    highest: int

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int8 if self.lowest < 0 else np.uint8)

    def nearest(self, steps: Floats) -> AnyArray:
        np.rint(steps, out=steps)
        np.clip(steps, np.float32(self.lowest), np.float32(self.highest), out=steps)
        return steps.astype(self.dtype)

    def values(self, codes: AnyArray) -> Floats:
        return codes.astype(np.float32)


@dataclass(frozen=True)
class Table(Levels):
    """The numbers of a table; a code is an index into it. Of equal numbers the first is used."""

    numbers: tuple[float, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    @cached_property
    def ascending(self) -> tuple[float, ...]:
        """The different numbers of the table in order."""
        return tuple(sorted(set(self.numbers)))

    @cached_property
    def _search(self) -> tuple[Floats, AnyArray]:
        """Where one number gives way to the next, and the codes of the numbers in order."""
        numbers = np.array(self.ascending, np.float32)
        codes = np.array([self.numbers.index(number) for number in self.ascending], np.uint8)
        return ((numbers[1:] + numbers[:-1]) / 2).astype(np.float32), codes

    def nearest(self, steps: Floats) -> AnyArray:
        middles, codes = self._search
        return codes[np.searchsorted(middles, steps.reshape(-1)).reshape(steps.shape)]

    def values(self, codes: AnyArray) -> Floats:
        return np.array(self.numbers, np.float32)[codes]


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
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
        if self.tensor_wide and extent is None:
            extent = extent_of(as_f32(rows))
        source = rows.reshape(-1, rows.shape[-1])
        step = max(1, _BLOCK_ELEMENTS // source.shape[1] // self.row_block) * self.row_block
        pieces: list[Codes] = []
        for start in range(0, max(1, len(source)), step):
            block = np.ascontiguousarray(as_f32(source[start : start + step]))
            points = self.choose(block, importance, extent)
            pieces.append(self.assemble(points.nearest(block), points.parts))
        parts = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        return _with_lead(parts, rows.shape[:-1])

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
