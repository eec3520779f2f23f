"""How do the numbers of a GGML block lie in its bytes? Each type is a list of parts, in the order of the file.

Read in ggml-common.h and ggml-quants.c of llama.cpp; gguf-py's dequantisers are the test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..base import AnyArray


@dataclass(frozen=True)
class Part(ABC):
    """Some bytes of a block, which hold (some bits of) the numbers of a field: "codes", "scales", "d" ..."""

    field: str
    count: int
    """Numbers of the field in a block."""

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes of the part in a block."""

    @abstractmethod
    def pack(self, numbers: AnyArray) -> AnyArray:
        """The bytes u8[blocks, size_bytes] of numbers [blocks, count]."""

    @abstractmethod
    def unpack(self, stored: AnyArray) -> AnyArray:
        """The numbers (or their bits, in place) of u8[blocks, size_bytes]: [blocks, count]."""


@dataclass(frozen=True)
class Half(Part):
    """An f16."""

    count: int = 1

    @property
    def size_bytes(self) -> int:
        return 2

    def pack(self, numbers: AnyArray) -> AnyArray:
        return np.ascontiguousarray(numbers, "<f2").view(np.uint8)

    def unpack(self, stored: AnyArray) -> AnyArray:
        return np.ascontiguousarray(stored).view("<f2")


@dataclass(frozen=True)
class Plane(Part):
    """Bits [first, first + bits) of unsigned numbers. A byte holds, from its low bits on, numbers that lie `width`
    apart: the first run of `width` bytes holds the first 8 / bits runs of `width` numbers."""

    bits: int
    first: int
    width: int

    @property
    def size_bytes(self) -> int:
        return self.count * self.bits // 8

    @property
    def _shifts(self) -> range:
        return range(0, 8, self.bits)

    def pack(self, numbers: AnyArray) -> AnyArray:
        runs = numbers.reshape(len(numbers), -1, len(self._shifts), self.width)
        mask, packed = np.uint8((1 << self.bits) - 1), np.zeros(runs[:, :, 0].shape, np.uint8)
        for at, shift in enumerate(self._shifts):
            packed |= ((runs[:, :, at] >> np.uint8(self.first)) & mask) << np.uint8(shift)
        return packed.reshape(len(numbers), -1)

    def unpack(self, stored: AnyArray) -> AnyArray:
        runs = stored.reshape(len(stored), -1, 1, self.width)
        shifts = np.array(self._shifts, np.uint8)[:, None]
        numbers: AnyArray = ((runs >> shifts) & np.uint8((1 << self.bits) - 1)) << np.uint8(self.first)
        return numbers.reshape(len(stored), -1)


@dataclass(frozen=True)
class SixBits(Part):
    """8 scales and 8 mins of 6 bits: bytes 0-3 hold scales 0-3, bytes 4-7 mins 0-3, each with the two high bits of
    number i + 4 above; bytes 8-11 the four low bits of scales 4-7, and above them those of mins 4-7."""

    count: int = 16

    @property
    def size_bytes(self) -> int:
        return 12

    def pack(self, numbers: AnyArray) -> AnyArray:
        halves = numbers.reshape(-1, 2, 2, 4)  # scales and mins, first and last four
        first, last = halves[:, :, 0], halves[:, :, 1]
        head = first | (last >> np.uint8(4)) << np.uint8(6)
        tail = (last[:, 0] & np.uint8(15)) | (last[:, 1] & np.uint8(15)) << np.uint8(4)
        return np.concatenate([head.reshape(-1, 8), tail], axis=1)

    def unpack(self, stored: AnyArray) -> AnyArray:
        head, tail = stored[:, :8].reshape(-1, 2, 4), stored[:, 8:]
        low = np.stack([tail & np.uint8(15), tail >> np.uint8(4)], axis=1)
        last = low | (head >> np.uint8(6)) << np.uint8(4)
        return np.concatenate([head & np.uint8(63), last], axis=2).reshape(-1, 16)


_TRIT_RUNS: Final = ((32, 5), (16, 5), (4, 4))
"""TQ1_0: bytes in a run, and the numbers, that far apart, in each byte."""


@dataclass(frozen=True)
class Trits(Part):
    """256 numbers of 0, 1, 2, five to a byte (the last 16 four to a byte): as a fraction of 243, rounded up to 256ths,
    so that the next digit is what a multiplication by 3 carries out of the byte."""

    count: int = 256

    @property
    def size_bytes(self) -> int:
        return sum(width for width, _ in _TRIT_RUNS)

    def pack(self, numbers: AnyArray) -> AnyArray:
        pieces, start = [], 0
        for width, digits in _TRIT_RUNS:
            run = numbers[:, start : start + width * digits].reshape(-1, digits, width).astype(np.uint16)
            powers = np.array([3 ** (4 - i) for i in range(digits)], np.uint16)[:, None]
            pieces.append(((run * powers).sum(1, dtype=np.uint16) * np.uint16(256) + np.uint16(242)) // np.uint16(243))
            start += width * digits
        return np.concatenate(pieces, axis=1).astype(np.uint8)

    def unpack(self, stored: AnyArray) -> AnyArray:
        pieces, start = [], 0
        for width, digits in _TRIT_RUNS:
            powers = np.array([3**i for i in range(digits)], np.uint8)[:, None]
            shifted = stored[:, None, start : start + width] * powers  # modulo 256
            pieces.append(((shifted.astype(np.uint16) * 3) >> 8).reshape(len(stored), -1))
            start += width
        return np.concatenate(pieces, axis=1).astype(np.uint8)


def pack_blocks(parts: tuple[Part, ...], fields: Mapping[str, AnyArray]) -> AnyArray:
    """u8[blocks, bytes] of fields [blocks, count]."""
    return np.concatenate([part.pack(fields[part.field]) for part in parts], axis=1)


def unpack_blocks(parts: tuple[Part, ...], blocks: AnyArray) -> dict[str, AnyArray]:
    """The fields [blocks, count] of u8[blocks, bytes]."""
    fields: dict[str, AnyArray] = {}
    start = 0
    for part in parts:
        numbers = part.unpack(blocks[:, start : start + part.size_bytes])
        fields[part.field] = fields[part.field] | numbers if part.field in fields else numbers
        start += part.size_bytes
    return fields
