"""Floats of 4, 6 and 8 bits under scales: MXFP4 and its siblings, NVFP4, and FP8."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final

import ml_dtypes
import numpy as np

from ..errors import InputError
from ..floats import invertible
from ..types import DType, TensorType, f8e4m3, tensor, u8
from . import bit_stream, stored_scales
from .base import AnyArray, Codes, Floats
from .grid import Extent, Levels, Points
from .levels import LevelEncoding, extent_of
from .stored_scales import SCALES, TENSOR

ELEMENTS: Final[dict[str, np.dtype[Any]]] = {
    "e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
    "e2m3": np.dtype(ml_dtypes.float6_e2m3fn),
    "e3m2": np.dtype(ml_dtypes.float6_e3m2fn),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
"""The OCP formats by name, exponent and mantissa bits."""

E8M0, E4M3 = "e8m0", "e4m3"
_SCALES: Final = (*map(str, SCALES), E8M0, E4M3)
_E4M3: Final = ELEMENTS["e4m3"]
_LARGEST_E4M3: Final = np.float32(448)


@dataclass(frozen=True)
class Minifloats(Levels):
    """The finite numbers of a format; a code is the bits of one."""

    element: str

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    @property
    def bits(self) -> int:
        """Of a number."""
        return int(ml_dtypes.finfo(ELEMENTS[self.element]).bits)

    @property
    def largest(self) -> np.float32:
        """The largest finite number."""
        return np.float32(ml_dtypes.finfo(ELEMENTS[self.element]).max)

    def nearest(self, steps: Floats) -> AnyArray:
        np.clip(steps, -self.largest, self.largest, out=steps)
        return steps.astype(ELEMENTS[self.element]).view(np.uint8)

    def values(self, codes: AnyArray) -> Floats:
        return _numbers(self.element)[codes]


@cache
def _numbers(element: str) -> Floats:
    """The number behind each of 256 bytes."""
    dtype = ELEMENTS[element]
    codes = np.arange(256, dtype=np.uint8) & np.uint8((1 << int(ml_dtypes.finfo(dtype).bits)) - 1)
    return np.asarray(codes.view(dtype).astype(np.float32))


@dataclass(frozen=True)
class FloatEncoding(LevelEncoding, family="f"):
    """w = s * x with x a float of 4 to 8 bits, one s for each `group` columns (0: a row; -1: the tensor).

        f<e2m1, group=32, scale=e8m0>    MXFP4 (OCP Microscaling 1.0, arXiv 2310.10537); e2m3, e3m2, e4m3: MXFP6, MXFP8
        f<e2m1, group=16, scale=e4m3>    NVFP4: scales of E4M3 under an f32 of the tensor
        f<e4m3, group=0, scale=f32>      FP8 with a scale for each row

        part          shape            dtype                     stored
        codes         [..., columns]   u8, the bits of x         as a stream of bits for each row
        scales        [..., groups]    f16 bf16 f32 i8           as they are
                                       u8: 2^(byte - 127)        for e8m0
                                       f8e4m3                    for e4m3
        row_scales    [..., 1]         f32                       with i8 and e4m3: s = row_scale * scale; with e4m3 it
                                                                 is one for the tensor, stored with each row

    A scale puts the largest number of its group on the largest x. Of powers of two, and of the E4M3 that put it on 6 or
    on 4 and those between, the one that loses least is taken.
    """

    row_parts = ("row_scales",)

    element: str
    group: int = 32
    scale: str = E8M0

    def __post_init__(self) -> None:
        if self.element not in ELEMENTS:
            raise InputError(f"'{self.element}' is no format of floats", f"one of {', '.join(ELEMENTS)}")
        if self.scale not in _SCALES:
            raise InputError(f"scales cannot be {self.scale}", f"one of {', '.join(_SCALES)}")
        plain = self._scale_dtype
        if plain is not None:
            stored_scales.check(plain, self.group)
        elif self.group <= 0:
            raise InputError(f"scales of {self.scale} belong to groups", "choose a group")

    @property
    def _scale_dtype(self) -> DType | None:
        """The dtype of scales; None for the formats that this encoding adds."""
        return next((dtype for dtype in SCALES if str(dtype) == self.scale), None)

    @cached_property
    def levels(self) -> Minifloats:
        """What codes stand for, before scales."""
        return Minifloats(self.element)

    @property
    def tensor_wide(self) -> bool:
        return self.group == TENSOR or self.scale == E4M3

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` numbers."""
        return columns // self.group if self.group > 0 else 1

    def unit(self, columns: int) -> int:
        return self.group if self.group > 0 and self.scale != "i8" else columns

    def bits_per_weight(self, columns: int) -> float:
        groups, plain = self.groups(columns), self._scale_dtype
        extra = 32 if self.scale == E4M3 else 0
        scales = 8 * groups + extra if plain is None else stored_scales.bits_per_row(plain, groups)
        return self.levels.bits + scales / columns

    def check_shape(self, shape: tuple[int, ...]) -> None:
        stored_scales.check_groups(shape, self.group, self)

    def choose(self, x: Floats, importance: Floats | None, extent: Extent | None) -> Points:
        own = extent_of(x)
        groups = self.groups(x.shape[1])
        grouped = x.reshape(len(x), groups, -1)
        largest = np.abs(grouped).max(-1)
        if self.group == TENSOR:
            largest = np.full_like(largest, (own if extent is None else extent).largest)
        reach = largest / self.levels.largest
        plain = self._scale_dtype
        if plain is not None:
            return self._points(stored_scales.store(reach, plain))
        weights = None if importance is None else importance.reshape(1, groups, -1)
        if self.scale == E8M0:
            exponent = np.frexp(largest)[1] - np.frexp(self.levels.largest)[1]
            tried = np.clip(exponent[..., None] + np.arange(2) + 127, 0, 254).astype(np.uint8)
            return self._points({"scales": self._least(grouped, weights, tried, np.float32(1))})
        unit = np.float32((own if extent is None else extent).largest) / (self.levels.largest * _LARGEST_E4M3)
        unit = invertible(np.maximum(unit, np.float32(2.0**-126)))
        code = np.minimum(reach / unit, _LARGEST_E4M3).astype(_E4M3).view(np.uint8)
        # Five steps of the mantissa are a factor of 1.5 and a little more.
        tried = np.clip(code[..., None].astype(np.int16) + np.arange(-1, 6), 0, 126).astype(np.uint8)
        scales = self._least(grouped, weights, tried, unit)
        return self._points({"scales": scales.view(_E4M3), "row_scales": np.full((len(x), 1), unit, np.float32)})

    def _least(self, x: Floats, weights: Floats | None, tried: AnyArray, unit: np.float32) -> AnyArray:
        """Of the bytes tried[rows, groups, k] for x[rows, groups, size], those whose scales, in `unit`, lose least."""
        if weights is None:
            squares = x * x
            weights = np.sqrt(squares.mean(-1, keepdims=True) + squares)
        best, least = tried[..., 0].copy(), np.full(x.shape[:2], np.inf, np.float32)
        for k in range(tried.shape[-1]):
            points = Points(self.levels, self._of_bytes(tried[..., k]) * unit, {})
            flat = x.reshape(len(x), -1)
            error = (points.values(points.nearest(flat)) - flat).reshape(x.shape)
            loss = (error * error * weights).sum(-1)
            best = np.where(loss < least, tried[..., k], best)
            least = np.minimum(loss, least)
        return best

    def _of_bytes(self, scales: AnyArray) -> Floats:
        if self.scale == E4M3:
            return _numbers("e4m3")[scales.view(np.uint8)]
        return np.ldexp(np.float32(1), scales.astype(np.int32) - 127).astype(np.float32)

    def _points(self, parts: dict[str, AnyArray]) -> Points:
        if self._scale_dtype is not None:
            return Points(self.levels, stored_scales.load(parts), parts)
        scale = self._of_bytes(parts["scales"])
        return Points(self.levels, scale * parts["row_scales"] if self.scale == E4M3 else scale, parts)

    def split(self, codes: Codes) -> tuple[AnyArray, Points]:
        parts = dict(codes)
        return parts.pop("codes"), self._points(parts)

    def packed_types(self, shape: tuple[int, ...]) -> dict[str, TensorType]:
        *lead, columns = shape
        types = {"codes": tensor(u8, (*lead, bit_stream.packed_width(columns, self.levels.bits)))}
        plain, groups = self._scale_dtype, self.groups(columns)
        if plain is not None:
            return types | stored_scales.stored_types(plain, tuple(lead), groups)
        types["scales"] = tensor(f8e4m3 if self.scale == E4M3 else u8, (*lead, groups))
        return types | ({"row_scales": tensor("f32", (*lead, 1))} if self.scale == E4M3 else {})

    def pack(self, codes: Codes) -> Codes:
        return {**codes, "codes": bit_stream.pack(codes["codes"], self.levels.bits)}

    def unpack(self, packed: Codes, columns: int) -> Codes:
        found = {**packed, "codes": bit_stream.unpack(packed["codes"], self.levels.bits, columns)}
        if not np.isfinite(_numbers(self.element)[found["codes"]]).all():
            raise InputError(f"a stored code of {self} is not finite")
        if self.scale == E8M0 and found["scales"].size and int(found["scales"].max()) == 255:
            raise InputError(f"a stored scale of {self} is not finite")
        if self.scale != E8M0:
            stored_scales.check_finite({name: part.astype(np.float32) for name, part in found.items()}, self)
        return found

    def arguments(self) -> tuple[str, ...]:
        return self.element, stored_scales.group_text(self.group), f"scale={self.scale}"

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> FloatEncoding:
        if len(arguments) != 3 or not arguments[2].startswith("scale="):
            raise ValueError("it needs three arguments: a format, group=N, scale=FORMAT")
        try:
            return cls(arguments[0], stored_scales.parse_group(arguments[1]), arguments[2].removeprefix("scale="))
        except InputError as error:
            raise ValueError(error.message) from None
