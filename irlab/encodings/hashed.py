"""Numbers that a hash picks from a small table, with signs that another hash picks: little but the table is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..floats import as_f32
from ..types import TensorType, f16, i32, tensor
from .base import AnyArray, Codes, Encoding, Floats
from .grid import Extent

PRIME: Final = (1 << 31) - 1
"""Hashes are (a key + b) mod PRIME: products of two numbers below it fit 64 bits."""


@dataclass(frozen=True)
class HashedEncoding(Encoding, family="hashed"):
    """w[i, j] = s(i, j) * table[i, h(i, j)], a row's table being columns / compression numbers: `hashed<8, seed=0>`.

        part     shape                          dtype     stored
        table    [rows, columns / compression]  f16       as it is
        row      [rows, 1]                      i32       as it is: the i of the row, wherever that is taken

    HashedNets (Chen et al. 2015, arXiv 1504.04788), with a table for each row as in the tiles of ROAST (Desai et al.
    2022, arXiv 2207.10702), so that rows are read alone. With k = i columns + j, h is ((a k + b) mod 2^31-1) mod the
    size of the table, and s is -1 where ((c k + d) mod 2^31-1) is odd; a, b, c and d come from the seed.
    """

    compression: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.compression < 2:
            raise InputError(f"a compression of {self.compression} is none", "8 stores an eighth of the numbers")

    @property
    def factors(self) -> tuple[int, int, int, int]:
        """a, b, c and d."""
        a, b, c, d = np.random.default_rng(self.seed).integers(1, PRIME, 4).tolist()
        return a, b, c, d

    def bits_per_weight(self, columns: int) -> float:
        return 16 / self.compression + 32 / columns

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or not shape[1] or shape[1] % self.compression:
            raise InputError(f"a tensor of shape {list(shape)} has no tables of columns / {self.compression} numbers")

    def places(self, row: AnyArray, columns: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """Which number of its table each weight is, i64[rows, columns], and its sign, for rows i32[rows, 1]."""
        a, b, c, d = self.factors
        key = (row.astype(np.int64) * columns + np.arange(columns)) % PRIME
        odd = (key * c + d) % PRIME % 2
        return (key * a + b) % PRIME % (columns // self.compression), (1 - 2 * odd).astype(np.float32)

    def encode(self, rows: AnyArray, importance: Floats | None = None, extent: Extent | None = None) -> Codes:
        """The best tables in themselves: means of the numbers that share a place. Without training they are useless."""
        self.check_shape(rows.shape)
        values = as_f32(rows)
        if not np.isfinite(values).all():
            raise InputError("NaN or infinite numbers cannot be encoded")
        row = np.arange(len(rows), dtype=np.int32)[:, None]
        places, signs = self.places(row, rows.shape[1])
        weights = np.ones(rows.shape[1], np.float32) if importance is None else importance
        total = self.gathered(values * signs * weights, places)
        mass = self.gathered(np.broadcast_to(weights, values.shape), places)
        table = np.divide(total, mass, out=np.zeros_like(total), where=mass > 0)
        return {"table": table.astype(np.float16), "row": row}

    def gathered(self, values: AnyArray, places: npt.NDArray[np.int64]) -> Floats:
        """The sums of values[rows, columns] over what shares a place: f32[rows, columns / compression]."""
        rows, size = len(values), values.shape[1] // self.compression
        flat = (places + np.arange(rows)[:, None] * size).reshape(-1)
        sums = np.bincount(flat, np.ascontiguousarray(values).reshape(-1), rows * size)
        return sums.reshape(rows, size).astype(np.float32)

    def decode(self, codes: Codes) -> Floats:
        table = codes["table"].astype(np.float32)
        places, signs = self.places(codes["row"], table.shape[1] * self.compression)
        return np.take_along_axis(table, places, 1) * signs

    def packed_types(self, shape: tuple[int, ...]) -> dict[str, TensorType]:
        rows, columns = shape
        return {"table": tensor(f16, (rows, columns // self.compression)), "row": tensor(i32, (rows, 1))}

    def pack(self, codes: Codes) -> Codes:
        return codes

    def unpack(self, packed: Codes, columns: int) -> Codes:
        if not np.isfinite(packed["table"]).all():
            raise InputError(f"a stored table of {self} is not finite")
        if packed["row"].size and int(packed["row"].min()) < 0:
            raise InputError(f"a stored row of {self} is negative")
        return packed

    def arguments(self) -> tuple[str, ...]:
        return str(self.compression), f"seed={self.seed}"

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> HashedEncoding:
        parts: list[Any] = [arguments[0], *(argument.partition("=") for argument in arguments[1:])]
        if len(parts) != 2 or not parts[0].isdecimal() or parts[1][0] != "seed" or not parts[1][2].isdecimal():
            raise ValueError("it needs two arguments: the compression, and seed=N")
        if len(parts[0]) > 6 or len(parts[1][2]) > 9:
            raise ValueError("its numbers are too large")
        return cls(int(parts[0]), int(parts[1][2]))
