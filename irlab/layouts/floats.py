"""What layouts of small floats have in common: FP8 with a scale for each row, and NVFP4."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from ..encodings import Codes, FloatEncoding
from .base import AnyArray


def is_nvfp4(encoding: FloatEncoding) -> bool:
    """Whether it is E2M1 in groups of 16 under scales of E4M3."""
    return (encoding.element, encoding.group, encoding.scale) == ("e2m1", 16, "e4m3")


def is_fp8_by_row(encoding: FloatEncoding) -> bool:
    """Whether it is E4M3 with one float scale for each row."""
    return (encoding.element, encoding.group) == ("e4m3", 0) and encoding.scale in ("f16", "bf16", "f32")


def floats_refusal(encoding: FloatEncoding, layout: str) -> str:
    """Why `encoding` is neither of the two; "" where it is."""
    if is_nvfp4(encoding) or is_fp8_by_row(encoding):
        return ""
    return f"the {layout} layout holds NVFP4 and FP8 (e4m3) with a scale for each row, not {encoding}"


def e4m3_numbers(codes: AnyArray) -> AnyArray:
    """f8e4m3 of the bytes that are its bits."""
    return codes.view(ml_dtypes.float8_e4m3fn)


def e4m3_codes(numbers: AnyArray) -> AnyArray:
    """The inverse of `e4m3_numbers`."""
    return np.ascontiguousarray(numbers).view(np.uint8)


def packed_nibbles(codes: AnyArray) -> AnyArray:
    """u8[rows, n] below 16 -> u8[rows, n / 2], the first of two in the lower nibble."""
    pairs: AnyArray = codes[:, ::2] | (codes[:, 1::2] << np.uint8(4))
    return pairs


def nvfp4_codes(packed: AnyArray, scales: AnyArray, unit: np.float32) -> Codes:
    """The codes of NVFP4 from its nibbles, the scales of its blocks and the scale of the tensor."""
    codes = np.empty((len(packed), 2 * packed.shape[1]), np.uint8)
    codes[:, ::2], codes[:, 1::2] = packed & np.uint8(15), packed >> np.uint8(4)
    return {"codes": codes, "scales": scales, "row_scales": np.full((len(packed), 1), unit, np.float32)}
