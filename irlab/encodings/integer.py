"""Integers with a scale (and perhaps a zero point) for each group of columns, as in Q4_0, Q8_0 and MatMulNBits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import ml_dtypes
import numpy as np

from ..errors import InputError
from ..floats import as_f32
from ..types import DType, TensorType, bf16, f16, f32, i8, tensor, u8
from .base import AnyArray, Codes, Encoding, Floats
from .search import Grid, search_scales

BITS: Final = (2, 3, 4, 5, 6, 8)

_SCALE_DTYPES: Final = {
    f16: np.dtype(np.float16),
    bf16: np.dtype(ml_dtypes.bfloat16),
    f32: np.dtype(np.float32),
}


@dataclass(frozen=True)
class IntegerEncoding(Encoding, family="q"):
    """w = s * q (symmetric) or w = s * (q - z), one s and z for each `group` columns (0: for each row).

    Codes are symmetric: i8 in [-2^(bits-1), 2^(bits-1) - 1], except that 8 bits use [-127, 127]; asymmetric: u8 in
    [0, 2^bits - 1], with z in the same range. Parts: "codes"[..., columns], "scales"[..., groups] in the dtype
    `scale`, and "zeros"[..., groups] u8 where asymmetric. Decoding is one product in f32.

    Symmetric int4 with groups of 32 and f16 scales is GGML's Q4_0 (a nibble is q + 8), symmetric int8 its Q8_0; both
    are ONNX Runtime's MatMulNBits with zero point 8 or 128. A scale may be negative: the grid reaches one step further
    down than up, and the sign turns that side towards the extreme of the group.
    """

    bits: int
    symmetric: bool = True
    group: int = 32
    scale: DType = f16

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError(f"integers of {self.bits} bits are not supported", f"one of {', '.join(map(str, BITS))}")
        if self.group < 0:
            raise InputError(f"a group of {self.group} columns makes no sense", "0 is one group for each row")
        if self.scale not in _SCALE_DTYPES:
            raise InputError(f"scales cannot be {self.scale}", "one of f16, bf16, f32")

    @property
    def lowest(self) -> int:
        """The smallest code."""
        if not self.symmetric:
            return 0
        return -127 if self.bits == 8 else -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1 if not self.symmetric else (1 << (self.bits - 1)) - 1

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` numbers."""
        return columns // self.group if self.group else 1

    def bits_per_weight(self, columns: int) -> float:
        group = self.group or columns
        return self.bits + (self.scale.bits + (0 if self.symmetric else self.bits)) / group

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) < 2:
            raise InputError(f"a tensor of shape {list(shape)} has no rows to encode as {self}")
        if not shape[-1] or (self.group and shape[-1] % self.group):
            raise InputError(f"rows of {shape[-1]} numbers are not whole groups of {self.group}")

    def encode(self, rows: AnyArray, importance: Floats | None = None) -> Codes:
        columns = rows.shape[-1]
        self.check_shape((len(rows), columns))
        groups = self.groups(columns)
        flat = np.ascontiguousarray(as_f32(rows)).reshape(-1, columns // groups)
        weights = None if importance is None else np.ascontiguousarray(importance, np.float32).reshape(groups, -1)
        grid = Grid(self.bits, self.lowest, self.highest, self.symmetric, _SCALE_DTYPES[self.scale])
        codes, scales, zeros = search_scales(flat, grid, weights)
        lead = rows.shape[:-1]
        found: dict[str, AnyArray] = {"codes": codes.reshape(rows.shape), "scales": scales.reshape(*lead, groups)}
        if zeros is not None:
            found["zeros"] = zeros.reshape(*lead, groups)
        return found

    def decode(self, codes: Codes) -> Floats:
        q, scales = codes["codes"], codes["scales"].astype(np.float32)
        grouped = q.reshape(*scales.shape, q.shape[-1] // scales.shape[-1])
        if self.symmetric:
            numbers = grouped.astype(np.float32)
        else:
            numbers = (grouped.astype(np.int16) - codes["zeros"][..., None].astype(np.int16)).astype(np.float32)
        numbers *= scales[..., None]
        return numbers.reshape(q.shape)

    def packed_types(self, shape: tuple[int, ...]) -> dict[str, TensorType]:
        groups = self.groups(shape[-1])
        types = {
            "codes": tensor(u8, (*shape[:-1], math.ceil(shape[-1] * self.bits / 8))),
            "scales": tensor(self.scale, (*shape[:-1], groups)),
        }
        if self.bits == 8:
            types["codes"] = tensor(i8 if self.symmetric else u8, shape)
        if not self.symmetric:
            types["zeros"] = tensor(u8, (*shape[:-1], groups))
        return types

    def pack(self, codes: Codes) -> Codes:
        """Codes of fewer than 8 bits, as q - lowest, are a stream of bits for each row, least significant first."""
        if self.bits == 8:
            return codes
        raw = (codes["codes"].astype(np.int16) - self.lowest).astype(np.uint8)
        bits = np.unpackbits(raw[..., None], axis=-1, count=self.bits, bitorder="little")
        stream = bits.reshape(*raw.shape[:-1], raw.shape[-1] * self.bits)
        return {**codes, "codes": np.packbits(stream, axis=-1, bitorder="little")}

    def unpack(self, packed: Codes, columns: int) -> Codes:
        found = dict(packed)
        if self.bits < 8:
            stream = np.unpackbits(packed["codes"], axis=-1, count=columns * self.bits, bitorder="little")
            bits = stream.reshape(*stream.shape[:-1], columns, self.bits)
            raw = np.packbits(bits, axis=-1, bitorder="little")[..., 0]
            found["codes"] = (raw.astype(np.int16) + self.lowest).astype(np.int8 if self.symmetric else np.uint8)
        if self.bits == 8 and self.symmetric and found["codes"].size and int(found["codes"].min()) < self.lowest:
            raise InputError(f"a stored code is below {self.lowest}, the smallest of {self}")
        if not self.symmetric and found["zeros"].size and int(found["zeros"].max()) > self.highest:
            raise InputError(f"a stored zero point is above {self.highest}, the largest of {self}")
        if not np.isfinite(found["scales"]).all():
            raise InputError(f"a stored scale of {self} is not finite")
        return found

    def arguments(self) -> tuple[str, ...]:
        return f"int{self.bits}", "sym" if self.symmetric else "asym", f"group={self.group}", f"scale={self.scale}"

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> IntegerEncoding:
        if len(arguments) != 4:
            raise ValueError("it needs four arguments: intN, sym or asym, group=N, scale=DTYPE")
        kind, symmetry, group, scale = arguments
        scales = {f"scale={dtype}": dtype for dtype in _SCALE_DTYPES}
        if kind not in [f"int{bits}" for bits in BITS]:
            raise ValueError(f"'{kind}' is not one of {', '.join(f'int{bits}' for bits in BITS)}")
        if symmetry not in ("sym", "asym"):
            raise ValueError(f"'{symmetry}' is not sym or asym")
        if not group.startswith("group=") or not group[6:].isdecimal():
            raise ValueError(f"'{group}' is not group=N")
        if scale not in scales:
            raise ValueError(f"'{scale}' is not one of {', '.join(scales)}")
        return cls(int(kind[3:]), symmetry == "sym", int(group[6:]), scales[scale])
