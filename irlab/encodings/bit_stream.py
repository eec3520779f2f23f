"""How are codes of fewer than 8 bits stored? As a stream of bits for each row, least significant first."""

from __future__ import annotations

import math

import numpy as np

from .base import AnyArray


def packed_width(columns: int, bits: int) -> int:
    """Bytes of a row of `columns` codes."""
    return math.ceil(columns * bits / 8)


def pack(raw: AnyArray, bits: int) -> AnyArray:
    """u8[..., n] of numbers below 2^bits -> u8[..., packed_width(n, bits)]."""
    if bits == 8:
        return raw
    stream = np.unpackbits(raw[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(stream.reshape(*raw.shape[:-1], raw.shape[-1] * bits), axis=-1, bitorder="little")


def unpack(packed: AnyArray, bits: int, columns: int) -> AnyArray:
    """The inverse of `pack`, for rows of `columns` numbers."""
    if bits == 8:
        return packed
    stream = np.unpackbits(packed, axis=-1, count=columns * bits, bitorder="little")
    return np.packbits(stream.reshape(*stream.shape[:-1], columns, bits), axis=-1, bitorder="little")[..., 0]
