"""Integers with a scale (and perhaps a zero point) for each group of columns, as in Q4_0, Q8_0 and MatMulNBits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ..errors import InputError
from ..types import DType, TensorType, f16, f32, i8, tensor, u8
from . import bit_stream, stored_scales
from .base import AnyArray, Codes, Floats
from .grid import Extent, Points
from .levels import Integers, LevelEncoding, extent_of
from .search import IntegerGrid, search_scales
from .stored_scales import SCALES, TENSOR

BITS: Final = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class IntegerEncoding(LevelEncoding, family="q"):
    """w = s * q (symmetric) or w = s * (q - z), one s and z for each `group` columns (0: a row; -1: the tensor).

    Codes are symmetric: i8 in [-2^(bits-1), 2^(bits-1) - 1], except that 8 bits use [-127, 127]; asymmetric: u8 in
    [0, 2^bits - 1], with z in the same range. Decoding is one product in f32.

        part          shape               dtype                 stored
        codes         [..., columns]      i8 or u8              q - lowest as a stream of bits, least significant first
        scales        [..., groups]       f16, bf16, f32, i8    as they are
        row_scales    [..., 1]            f32                   with scales of i8 only: s = row_scale * scale
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
        stored_scales.check(self.scale, self.group)

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
        groups = self.groups(columns)
        zeros = 0 if self.symmetric else self.bits * groups
        return self.bits + (stored_scales.bits_per_row(self.scale, groups) + zeros) / columns

    def check_shape(self, shape: tuple[int, ...]) -> None:
        stored_scales.check_groups(shape, self.group, self)

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
            # A group of zeros has any scale, and is not to be the one that those of its row are stored relative to.
            told = x.reshape(len(x), groups, -1).any(-1)
            parts |= stored_scales.store(np.where(told, parts["scales"], np.float32(0)), i8)
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
        zero = parts["zeros"].astype(np.float32) if "zeros" in parts else None
        return Points(self.levels, stored_scales.load(parts), parts, zero)

    def split(self, codes: Codes) -> tuple[AnyArray, Points]:
        parts = dict(codes)
        return parts.pop("codes"), self._points(parts)

    def packed_types(self, shape: tuple[int, ...]) -> dict[str, TensorType]:
        *lead, columns = shape
        kind = i8 if self.bits == 8 and self.symmetric else u8
        types = {"codes": tensor(kind, (*lead, bit_stream.packed_width(columns, self.bits)))}
        types |= stored_scales.stored_types(self.scale, tuple(lead), self.groups(columns))
        if not self.symmetric:
            types["zeros"] = tensor(u8, (*lead, self.groups(columns)))
        return types

    def pack(self, codes: Codes) -> Codes:
        """Codes of fewer than 8 bits are stored as q - lowest."""
        if self.bits == 8:
            return codes
        raw = (codes["codes"].astype(np.int16) - self.lowest).astype(np.uint8)
        return {**codes, "codes": bit_stream.pack(raw, self.bits)}

    def unpack(self, packed: Codes, columns: int) -> Codes:
        found = dict(packed)
        if self.bits < 8:
            raw = bit_stream.unpack(packed["codes"], self.bits, columns)
            found["codes"] = (raw.astype(np.int16) + self.lowest).astype(np.int8 if self.symmetric else np.uint8)
        if self.bits == 8 and self.symmetric and found["codes"].size and int(found["codes"].min()) < self.lowest:
            raise InputError(f"a stored code is below {self.lowest}, the smallest of {self}")
        if not self.symmetric and found["zeros"].size and int(found["zeros"].max()) > self.highest:
            raise InputError(f"a stored zero point is above {self.highest}, the largest of {self}")
        stored_scales.check_finite(found, self)
        return found

    def arguments(self) -> tuple[str, ...]:
        symmetry = "sym" if self.symmetric else "asym"
        return f"int{self.bits}", symmetry, stored_scales.group_text(self.group), f"scale={self.scale}"

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> IntegerEncoding:
        if len(arguments) != 4:
            raise ValueError("it needs four arguments: intN, sym or asym, group=N, scale=DTYPE")
        kind, symmetry, group, scale = arguments
        if kind not in [f"int{bits}" for bits in BITS]:
            raise ValueError(f"'{kind}' is not one of {', '.join(f'int{bits}' for bits in BITS)}")
        if symmetry not in ("sym", "asym"):
            raise ValueError(f"'{symmetry}' is not sym or asym")
        return cls(int(kind[3:]), symmetry == "sym", stored_scales.parse_group(group), stored_scales.parse_scale(scale))
