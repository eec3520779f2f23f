"""Numbers of a table that is learnt for each row, by weighted k-means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..errors import InputError
from ..types import TensorType, f16, tensor, u8
from . import bit_stream
from .base import AnyArray, Codes, Floats
from .grid import Extent, Levels, Points
from .levels import LevelEncoding, extent_of

CODEBOOK_BITS: Final = (2, 3, 4, 5, 6)


@dataclass(frozen=True, eq=False)
class RowTables(Levels):
    """A table for each row, f32[rows, entries], ascending; a code is an index into that of its row."""

    tables: Floats

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def nearest(self, steps: Floats) -> AnyArray:
        from . import kernels

        codes = np.empty(steps.shape, np.uint8)
        middles = (self.tables[:, 1:] + self.tables[:, :-1]) / np.float32(2)
        kernels.nearest_in_rows(steps.reshape(len(steps), -1), middles, codes.reshape(len(steps), -1))
        return codes

    def values(self, codes: AnyArray) -> Floats:
        flat = codes.reshape(len(codes), -1)
        return np.take_along_axis(self.tables, flat.astype(np.intp), 1).reshape(codes.shape)


@dataclass(frozen=True)
class CodebookEncoding(LevelEncoding, family="codebook"):
    """w = table[q], with a table of 2^bits numbers for each row: `codebook<4>`.

        part     shape              dtype              stored
        codes    [..., columns]     u8, below 2^bits   as a stream of bits for each row
        table    [..., 2^bits]      f16, ascending     as it is

    Tables are the k-means of a row, weighted by importance (SqueezeLLM, arXiv 2306.07629): Lloyd's iterations over the
    sorted row, from quantiles and from even steps, the better of the two. Every row has its own, so that rows can be
    taken and joined; they cost 16 * 2^bits / columns bits a number.
    """

    row_parts = ("table",)

    bits: int = 4

    def __post_init__(self) -> None:
        if self.bits not in CODEBOOK_BITS:
            raise InputError(f"codebooks of {self.bits} bits are not supported", f"one of {CODEBOOK_BITS}")

    @property
    def entries(self) -> int:
        """Numbers in a table."""
        return 1 << self.bits

    def unit(self, columns: int) -> int:
        return columns

    def bits_per_weight(self, columns: int) -> float:
        return self.bits + 16 * self.entries / columns

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) < 2 or not shape[-1]:
            raise InputError(f"a tensor of shape {list(shape)} has no rows to encode as {self}")

    def choose(self, x: Floats, importance: Floats | None, extent: Extent | None) -> Points:
        from . import kernels

        largest = extent_of(x).largest
        if largest > float(np.finfo(np.float16).max):
            raise InputError(f"numbers as large as {largest:.3g} do not fit tables of f16")
        order = np.argsort(x, axis=1)
        if importance is None:
            squares = x * x
            weights = np.sqrt(squares + squares.mean(1, keepdims=True))
        else:
            weights = np.broadcast_to(importance, x.shape)
        tables = np.empty((len(x), self.entries), np.float32)
        kernels.k_means(np.take_along_axis(x, order, 1), np.take_along_axis(weights, order, 1), tables)
        return self._points({"table": np.sort(tables.astype(np.float16), axis=1)})

    def _points(self, parts: dict[str, AnyArray]) -> Points:
        table = parts["table"].astype(np.float32)
        return Points(RowTables(table), np.ones((len(table), 1), np.float32), parts)

    def split(self, codes: Codes) -> tuple[AnyArray, Points]:
        return codes["codes"], self._points({"table": codes["table"]})

    def packed_types(self, shape: tuple[int, ...]) -> dict[str, TensorType]:
        *lead, columns = shape
        return {
            "codes": tensor(u8, (*lead, bit_stream.packed_width(columns, self.bits))),
            "table": tensor(f16, (*lead, self.entries)),
        }

    def pack(self, codes: Codes) -> Codes:
        return {**codes, "codes": bit_stream.pack(codes["codes"], self.bits)}

    def unpack(self, packed: Codes, columns: int) -> Codes:
        if not np.isfinite(packed["table"]).all():
            raise InputError(f"a stored table of {self} is not finite")
        return {**packed, "codes": bit_stream.unpack(packed["codes"], self.bits, columns)}

    def arguments(self) -> tuple[str, ...]:
        return (str(self.bits),)

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> CodebookEncoding:
        if arguments not in [[str(bits)] for bits in CODEBOOK_BITS]:
            raise ValueError(f"it needs one argument, the bits of a code: one of {CODEBOOK_BITS}")
        return cls(int(arguments[0]))
