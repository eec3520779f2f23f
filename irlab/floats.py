"""How are floats of one width turned into another's, exactly and fast? NumPy converts bf16 through a scalar loop."""

from __future__ import annotations

from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]

_BF16 = np.dtype(ml_dtypes.bfloat16)
_TOO_LARGE, _INFINITE = 0x4780, 0x7F80
"""The bits of the bf16 numbers 65536, which f16 lacks, and infinity."""
_BLOCK_ELEMENTS = 1 << 16


def invertible(x: float | np.floating[Any]) -> np.float32:
    """The f32 at x, or next to it, that is the inverse of its inverse: files may store either of the two."""
    return np.float32(1) / (np.float32(1) / np.float32(x))


def as_f32(array: AnyArray) -> npt.NDArray[np.float32]:
    """`array` as f32; without a copy where it is f32 already. bf16 is the upper half of an f32."""
    if array.dtype == np.float32:
        return array
    if array.dtype == _BF16:
        wide = array.view(np.uint16).astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    return array.astype(np.float32)


def as_f16(array: AnyArray) -> npt.NDArray[np.float16]:
    """`array` rounded to nearest as f16; without a copy where it is f16 already. Raises OverflowError where a finite
    number would become an infinity."""
    if array.dtype == np.float16:
        return array
    if array.dtype != _BF16:
        try:
            with np.errstate(over="raise"):
                return as_f32(array).astype(np.float16)
        except FloatingPointError:
            raise OverflowError("a number is larger than 65504, the largest of f16") from None
    bits = np.ascontiguousarray(array).view(np.uint16)
    halves = np.empty(bits.shape, np.float16)
    source, target = bits.reshape(-1), halves.reshape(-1)
    for start in range(0, bits.size, _BLOCK_ELEMENTS):
        block = source[start : start + _BLOCK_ELEMENTS]
        magnitude = block & np.uint16(0x7FFF)
        if magnitude.max() >= _TOO_LARGE and ((magnitude >= _TOO_LARGE) & (magnitude < _INFINITE)).any():
            raise OverflowError("a number is larger than 65504, the largest of f16")
        # Gathering from all 65,536 answers is several times faster than converting; in blocks, as NumPy widens indices.
        np.take(_f16_of_bf16(), block, out=target[start : start + _BLOCK_ELEMENTS], mode="wrap")
    return halves


@cache
def _f16_of_bf16() -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore", invalid="ignore"):
        patterns: AnyArray = np.arange(1 << 16, dtype=np.uint16).view(_BF16)
        return patterns.astype(np.float32).astype(np.float16)
