"""Numbers of a table that is learnt for each row, or for a few rows, by weighted k-means."""

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
    """w = table[q], with a table of 2^bits numbers for each row, `codebook<4>`, or for some: `codebook<4, rows=16>`.

        part     shape              dtype              stored
        codes    [..., columns]     u8, below 2^bits   as a stream of bits for each row
        table    [..., 2^bits]      f16, ascending     as it is; that of several rows spread over them, equal shares

    Tables are the k-means of a row, or of the rows that share one, weighted by importance (Han et al. 2015, Deep
    Compression, arXiv 1510.00149; SqueezeLLM, arXiv 2306.07629): Lloyd's iterations over the sorted numbers, from
    quantiles and from even steps, the better of the two. Codes name the table of each row, so that rows can be taken
    and joined; tables cost 16 * 2^bits / (rows * columns) bits a number.
    """

    row_parts = ("table",)

    bits: int = 4
    rows: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError(f"a codebook for {self.rows} rows is none", "1 is one for each row")
        if self.bits not in CODEBOOK_BITS:
            raise InputError(f"codebooks of {self.bits} bits are not supported", f"one of {CODEBOOK_BITS}")

    @property
    def entries(self) -> int:
        """Numbers in a table."""
        return 1 << self.bits

    def unit(self, columns: int) -> int:
        return columns

    def bits_per_weight(self, columns: int) -> float:
        return self.bits + 16 * self._share / columns

    @property
    def row_block(self) -> int:
        return self.rows

    @property
    def _share(self) -> int:
        """The entries of a table that are stored with each of its rows."""
        return -(-self.entries // self.rows)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) < 2 or not shape[-1]:
            raise InputError(f"a tensor of shape {list(shape)} has no rows to encode as {self}")
        if shape[-2] % self.rows:
            raise InputError(f"{shape[-2]} rows are not whole groups of {self.rows}")

    def choose(self, x: Floats, importance: Floats | None, extent: Extent | None) -> Points:
        from . import kernels

        largest = extent_of(x).largest
        if largest > float(np.finfo(np.float16).max):
            raise InputError(f"numbers as large as {largest:.3g} do not fit tables of f16")
        if importance is None:
            squares = x * x
            weights = np.sqrt(squares + squares.mean(1, keepdims=True))
        else:
            weights = np.broadcast_to(importance, x.shape)
        x, weights = (part.reshape(-1, self.rows * x.shape[1]) for part in (x, weights))
        order = np.argsort(x, axis=1)
        tables = np.empty((len(x), self.entries), np.float32)
        kernels.k_means(np.take_along_axis(x, order, 1), np.take_along_axis(weights, order, 1), tables)
        return self._points({"table": np.repeat(np.sort(tables.astype(np.float16), axis=1), self.rows, axis=0)})

    def _points(self, parts: dict[str, AnyArray]) -> Points:
        table = parts["table"].astype(np.float32)
        return Points(RowTables(table), np.ones((len(table), 1), np.float32), parts)

    def split(self, codes: Codes) -> tuple[AnyArray, Points]:
        return codes["codes"], self._points({"table": codes["table"]})

    def packed_types(self, shape: tuple[int, ...]) -> dict[str, TensorType]:
        *lead, columns = shape
        return {
            "codes": tensor(u8, (*lead, bit_stream.packed_width(columns, self.bits))),
            "table": tensor(f16, (*lead, self._share)),
        }

    def pack(self, codes: Codes) -> Codes:
        table = codes["table"]
        if self.rows > 1:
            groups = (
                table.reshape(-1, self.rows, self.entries) if table.size % (self.rows * self.entries) == 0 else None
            )
            if groups is None or (groups != groups[:, :1]).any():
                raise InputError(f"rows of {self} were taken apart: those that share a table must stay together")
            spread = np.zeros((len(groups), self.rows * self._share), np.float16)
            spread[:, : self.entries] = groups[:, 0]
            table = spread.reshape(*table.shape[:-1], self._share)
        return {"codes": bit_stream.pack(codes["codes"], self.bits), "table": table}

    def unpack(self, packed: Codes, columns: int) -> Codes:
        table = packed["table"]
        if not np.isfinite(table).all():
            raise InputError(f"a stored table of {self} is not finite")
        if self.rows > 1:
            groups = table.reshape(-1, self.rows * self._share)[:, : self.entries]
            table = np.repeat(groups, self.rows, axis=0).reshape(*table.shape[:-1], self.entries)
        return {"codes": bit_stream.unpack(packed["codes"], self.bits, columns), "table": table}

    def arguments(self) -> tuple[str, ...]:
        return (str(self.bits), f"rows={self.rows}") if self.rows > 1 else (str(self.bits),)

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> CodebookEncoding:
        if arguments[:1] not in [[str(bits)] for bits in CODEBOOK_BITS]:
            raise ValueError(f"it needs one argument, the bits of a code: one of {CODEBOOK_BITS}")
        if len(arguments) == 1:
            return cls(int(arguments[0]))
        name, _, count = arguments[1].partition("=")
        if len(arguments) > 2 or name != "rows" or not count.isdecimal() or not 1 < int(count) < 1 << 31:
            raise ValueError("after the bits it takes rows=N, how many rows share a table")
        return cls(int(arguments[0]), int(count))
