"""What GPTQ, AWQ and pack-quantized have in common: unsigned codes, scales and zero points of integer encodings."""

from __future__ import annotations

import numpy as np

from ..encodings import Codes, Encoding, IntegerEncoding
from ..errors import InputError
from ..types import DType, f16, i8
from .base import AnyArray, Scheme


def require_integers(scheme: Scheme, bits: tuple[int, ...], layout: str) -> None:
    """Raises InputError unless `scheme` is of integers of so many bits with float scales for groups or rows, read by
    activations that are not rounded."""
    reason = _refusal(scheme.encoding, bits, layout)
    if not reason and scheme.activation is not None:
        reason = f"the {layout} layout is for matrices alone, not for {scheme.activation}"
    if reason:
        raise InputError(reason)


def _refusal(encoding: Encoding, bits: tuple[int, ...], layout: str) -> str:
    if not isinstance(encoding, IntegerEncoding):
        return f"the {layout} layout holds integers, not {encoding}"
    if encoding.bits not in bits:
        return f"the {layout} layout holds integers of {', '.join(map(str, bits))} bits, not of {encoding.bits}"
    if encoding.tensor_wide:
        return f"the {layout} layout has a scale for each group or row, not one for the tensor"
    if encoding.scale is i8:
        return f"the {layout} layout stores scales as floats, not as i8"
    return ""


def raw_codes(encoding: IntegerEncoding, codes: Codes) -> AnyArray:
    """u8[out, in]: symmetric codes q as q + 2^(bits - 1), asymmetric ones as they are."""
    if not encoding.symmetric:
        return codes["codes"]
    return (codes["codes"].astype(np.int16) + middle(encoding)).astype(np.uint8)


def codes_of_raw(encoding: IntegerEncoding, raw: AnyArray, scales: AnyArray, zeros: AnyArray | None) -> Codes:
    """The inverse of `raw_codes`, with scales[out, groups] and, if asymmetric, zero points u8[out, groups]."""
    found = {"scales": np.ascontiguousarray(scales)}
    if encoding.symmetric:
        return {"codes": (raw.astype(np.int16) - middle(encoding)).astype(np.int8), **found}
    assert zeros is not None
    return {"codes": raw, **found, "zeros": np.ascontiguousarray(zeros)}


def raw_zeros(encoding: IntegerEncoding, codes: Codes) -> AnyArray:
    """u8[out, groups]: the raw code that stands for zero."""
    if not encoding.symmetric:
        return codes["zeros"]
    return np.full(codes["scales"].shape, middle(encoding), np.uint8)


def middle(encoding: IntegerEncoding) -> int:
    """The raw code of a symmetric zero."""
    return 1 << (encoding.bits - 1)


def group_size(encoding: IntegerEncoding) -> int:
    """Columns to a scale as these layouts say it: -1 for a row."""
    return encoding.group or -1


def integer_encoding(bits: int, symmetric: bool, group: int, scale: DType = f16) -> IntegerEncoding:
    """The encoding of what such a layout says. Raises InputError for bits that irlab lacks."""
    return IntegerEncoding(bits, symmetric, max(0, group), scale)
