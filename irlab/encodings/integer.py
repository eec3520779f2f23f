"""Integers with a scale (and perhaps a zero point) for each group of columns, as in Q4_0, Q8_0 and MatMulNBits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np

from ..errors import InputError
from ..types import DType, TensorType, bf16, f16, f32, i8, tensor, u8
from .base import AnyArray, Codes, Floats
from .grid import Extent, Points
from .levels import Integers, LevelEncoding, extent_of
from .search import IntegerGrid, search_scales

BITS: Final = (2, 3, 4, 5, 6, 8)
TENSOR: Final = -1
"""The `group` of one scale for a whole tensor."""

SCALES: Final[dict[DType, np.dtype[Any]]] = {
    f16: np.dtype(np.float16),
    bf16: np.dtype(ml_dtypes.bfloat16),
    f32: np.dtype(np.float32),
    i8: np.dtype(np.int8),
}
"""How scales can be stored; i8: as multiples of an f32 of their row."""


@dataclass(frozen=True)
class IntegerEncoding(LevelEncoding, family="q"):
    """w = s * q (symmetric) or w = s * (q - z), one s and z for each `group` columns (0: a row; -1: the tensor).

    Codes are symmetric: i8 in [-2^(bits-1), 2^(bits-1) - 1], except that 8 bits use [-127, 127]; asymmetric: u8 in
    [0, 2^bits - 1], with z in the same range. Decoding is one product in f32.

        part          shape               dtype                 stored
        codes         [..., columns]      i8 or u8              q - lowest as a stream of bits, least significant first
        scales        [..., groups]       f16, bf16, f32, i8    as they are
        row_scales    [..., 1]            f32                   with scales of i8 only: s = row_scale * scale (QLoRA's
                                                                double quantisation, arXiv 2305.14314, along rows)
        zeros         [..., groups]       u8                    asymmetric only

    A scale of the whole tensor is stored with each row, so that rows can be taken and joined.

    Symmetric int4 with groups of 32 and f16 scales is GGML's Q4_0 (a nibble is q + 8), symmetric int8 its Q8_0; both
    are ONNX Runtime's MatMulNBits with zero point 8 or 128. A scale may be negative: the grid reaches one step further
    down than up, and the sign turns that side towards the extreme of the group.
    """

    row_parts = ("row_scales",)

    bits: int
    symmetric: bool = True
    group: int = 32
    scale: DType = f16

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError(f"integers of {self.bits} bits are not supported", f"one of {', '.join(map(str, BITS))}")
        if self.group < TENSOR:
            raise InputError(
                f"a group of {self.group} columns makes no sense", "0 is one group for each row, -1 one for the tensor"
            )
        if self.scale not in SCALES:
            raise InputError(f"scales cannot be {self.scale}", f"one of {', '.join(map(str, SCALES))}")
        if self.scale is i8 and self.group <= 0:
            raise InputError("a single scale of a row cannot be stored as i8", "choose a group, or scale=f16")

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

    @property
    def tensor_wide(self) -> bool:
        return self.group == TENSOR

    @property
    def levels(self) -> Integers:
        """The codes, which are their own levels."""
        return Integers(self.lowest, self.highest)

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` numbers."""
        return columns // self.group if self.group > 0 else 1

    def unit(self, columns: int) -> int:
        return self.group if self.group > 0 and self.scale is not i8 else columns

    def bits_per_weight(self, columns: int) -> float:
        group = self.group if self.group > 0 else columns
        row = 32 / columns if self.scale is i8 else 0
        return self.bits + (self.scale.bits + (0 if self.symmetric else self.bits)) / group + row

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) < 2:
            raise InputError(f"a tensor of shape {list(shape)} has no rows to encode as {self}")
        if not shape[-1] or (self.group > 0 and shape[-1] % self.group):
            raise InputError(f"rows of {shape[-1]} numbers are not whole groups of {self.group}")

    def choose(self, x: Floats, importance: Floats | None, extent: Extent | None) -> Points:
        if self.group == TENSOR:
            return self._of_extent(len(x), extent_of(x) if extent is None else extent)
        groups = self.groups(x.shape[1])
        weights = None if importance is None else importance.reshape(groups, -1)
        kind = f32 if self.scale is i8 else self.scale
        grid = IntegerGrid(self.bits, self.lowest, self.highest, self.symmetric, SCALES[kind])
        scales, zeros = search_scales(x.reshape(-1, x.shape[1] // groups), grid, weights)
        parts: dict[str, AnyArray] = {"scales": scales.reshape(len(x), groups)}
        if zeros is not None:
            parts["zeros"] = zeros.reshape(len(x), groups)
        if self.scale is i8:
            # No smaller than the least normal number: its inverse is finite.
            unit = np.maximum(np.abs(parts["scales"]).max(1, keepdims=True) / np.float32(127), np.float32(2**-126))
            parts |= {"scales": np.rint(parts["scales"] / unit).astype(np.int8), "row_scales": unit}
        return self._points(parts)

    def _of_extent(self, rows: int, extent: Extent) -> Points:
        """The scale and zero point that just span `extent`, for each of `rows` rows."""
        low, high = min(extent.low, 0.0), max(extent.high, 0.0)
        full = -self.lowest if self.symmetric else self.highest
        reach = (-low if -low > high else -high) if self.symmetric else high - low
        with np.errstate(over="ignore"):
            scale = np.array(reach / full, SCALES[self.scale])
        if not np.isfinite(scale):
            raise InputError(f"numbers as large as {extent.largest:.3g} do not fit scales of {SCALES[self.scale]}")
        parts: dict[str, AnyArray] = {"scales": np.full((rows, 1), scale)}
        if not self.symmetric:
            zero = round(-low / float(scale)) if float(scale) else 0
            parts["zeros"] = np.full((rows, 1), min(zero, self.highest), np.uint8)
        return self._points(parts)

    def _points(self, parts: dict[str, AnyArray]) -> Points:
        scale = parts["scales"].astype(np.float32)
        if "row_scales" in parts:
            scale *= parts["row_scales"]
        zero = parts["zeros"].astype(np.float32) if "zeros" in parts else None
        return Points(self.levels, scale, parts, zero)

    def split(self, codes: Codes) -> tuple[AnyArray, Points]:
        parts = dict(codes)
        return parts.pop("codes"), self._points(parts)

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
        if self.scale is i8:
            types["row_scales"] = tensor(f32, (*shape[:-1], 1))
        return types

    def pack(self, codes: Codes) -> Codes:
        """Codes of fewer than 8 bits, as q - lowest, are a stream of bits for each row, least significant first."""
        if self.bits == 8:
            return codes
        raw = (codes["codes"].astype(np.int16) - self.lowest).astype(np.uint8)
        return {**codes, "codes": pack_bits(raw, self.bits)}

    def unpack(self, packed: Codes, columns: int) -> Codes:
        found = dict(packed)
        if self.bits < 8:
            raw = unpack_bits(packed["codes"], self.bits, columns)
            found["codes"] = (raw.astype(np.int16) + self.lowest).astype(np.int8 if self.symmetric else np.uint8)
        if self.bits == 8 and self.symmetric and found["codes"].size and int(found["codes"].min()) < self.lowest:
            raise InputError(f"a stored code is below {self.lowest}, the smallest of {self}")
        if not self.symmetric and found["zeros"].size and int(found["zeros"].max()) > self.highest:
            raise InputError(f"a stored zero point is above {self.highest}, the largest of {self}")
        if not all(np.isfinite(found[part]).all() for part in ("scales", "row_scales") if part in found):
            raise InputError(f"a stored scale of {self} is not finite")
        return found

    def arguments(self) -> tuple[str, ...]:
        group = "tensor" if self.group == TENSOR else str(self.group)
        return f"int{self.bits}", "sym" if self.symmetric else "asym", f"group={group}", f"scale={self.scale}"

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> IntegerEncoding:
        if len(arguments) != 4:
            raise ValueError("it needs four arguments: intN, sym or asym, group=N, scale=DTYPE")
        kind, symmetry, group, scale = arguments
        if kind not in [f"int{bits}" for bits in BITS]:
            raise ValueError(f"'{kind}' is not one of {', '.join(f'int{bits}' for bits in BITS)}")
        if symmetry not in ("sym", "asym"):
            raise ValueError(f"'{symmetry}' is not sym or asym")
        return cls(int(kind[3:]), symmetry == "sym", parse_group(group), parse_scale(scale))


def parse_group(argument: str) -> int:
    """The group behind `group=N` or `group=tensor`; raises ValueError."""
    name, _, number = argument.partition("=")
    if name != "group" or not (number.isdecimal() or number == "tensor"):
        raise ValueError(f"'{argument}' is not group=N")
    return TENSOR if number == "tensor" else int(number)


def parse_scale(argument: str) -> DType:
    """The dtype behind `scale=DTYPE`; raises ValueError."""
    scales = {f"scale={dtype}": dtype for dtype in SCALES}
    if argument not in scales:
        raise ValueError(f"'{argument}' is not one of {', '.join(scales)}")
    return scales[argument]


def pack_bits(raw: AnyArray, bits: int) -> AnyArray:
    """u8[..., n] of numbers below 2^bits -> u8[..., ceil(n * bits / 8)], a stream of bits, least significant first."""
    stream = np.unpackbits(raw[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(stream.reshape(*raw.shape[:-1], raw.shape[-1] * bits), axis=-1, bitorder="little")


def unpack_bits(packed: AnyArray, bits: int, columns: int) -> AnyArray:
    """The inverse of `pack_bits`, for rows of `columns` numbers."""
    stream = np.unpackbits(packed, axis=-1, count=columns * bits, bitorder="little")
    return np.packbits(stream.reshape(*stream.shape[:-1], columns, bits), axis=-1, bitorder="little")[..., 0]
