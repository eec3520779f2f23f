"""Which GGML types are there, and how is each made up? A table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ..grid import Levels
from ..levels import Integers, Table
from .layouts import Half, Part, Plane, SixBits, Trits
from .scales import (
    AffineScales,
    E4M3Scales,
    OwnScale,
    PowerScales,
    ScaleAndOffset,
    Scales,
    SignedScales,
    TableScale,
)


@dataclass(frozen=True)
class BlockType:
    """A type that is written and read number by number: codes of `levels`, stored plus `bias`, under `scales`."""

    size: int
    """Numbers in a block."""
    levels: Levels
    bias: int
    scales: Scales
    parts: tuple[Part, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of a block."""
        return sum(part.size_bytes for part in self.parts)


FP4: Final = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0)
"""Twice the numbers of E2M1, by their bits."""
IQ4: Final = (
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
)  # fmt: skip
"""ggml's `kvalues_iq4nl`."""


def _codes(bits: int, first: int, width: int, size: int) -> Plane:
    return Plane("codes", size, bits, first, width)


def _span(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(float(step) for step in np.linspace(low, high, count))


_D, _DMIN, _M = Half("d"), Half("dmin"), Half("m")
_IQ4_STEPS: Final = (-127.0, 113.0, -118.0, -105.0)

BLOCK_TYPES: Final[dict[str, BlockType]] = {
    "q4_0": BlockType(32, Integers(-8, 7), 8, OwnScale(4), (_D, _codes(4, 0, 16, 32))),
    "q5_0": BlockType(32, Integers(-16, 15), 16, OwnScale(5), (_D, _codes(1, 4, 1, 32), _codes(4, 0, 16, 32))),
    "q8_0": BlockType(32, Integers(-127, 127), 0, OwnScale(8), (_D, _codes(8, 0, 32, 32))),
    "q4_1": BlockType(32, Integers(0, 15), 0, ScaleAndOffset(_span(11.5, 17, 16)), (_D, _M, _codes(4, 0, 16, 32))),
    "q5_1": BlockType(
        32, Integers(0, 31), 0, ScaleAndOffset(_span(27, 33, 10)),
        (_D, _M, _codes(1, 4, 1, 32), _codes(4, 0, 16, 32)),
    ),
    "q2_k": BlockType(
        256, Integers(0, 3), 0, AffineScales(16, 15, (3.0, 2.6, 2.2, 3.4), 4, 2),
        (Plane("scales", 32, 4, 0, 16), _codes(2, 0, 32, 256), _D, _DMIN),
    ),
    "q3_k": BlockType(
        256, Integers(-4, 3), 4, SignedScales(16, -32, 31, 32, (-4.0, -3.6, -3.2, -2.8, -4.5)),
        (_codes(1, 2, 32, 256), _codes(2, 0, 32, 256), Plane("scales", 16, 4, 0, 8), Plane("scales", 16, 2, 4, 4), _D),
    ),
    "q4_k": BlockType(
        256, Integers(0, 15), 0, AffineScales(8, 63, _span(11.5, 17, 16)),
        (_D, _DMIN, SixBits("scales"), _codes(4, 0, 32, 256)),
    ),
    "q5_k": BlockType(
        256, Integers(0, 31), 0, AffineScales(8, 63, _span(27, 33, 10)),
        (_D, _DMIN, SixBits("scales"), _codes(1, 4, 32, 256), _codes(4, 0, 32, 256)),
    ),
    "q6_k": BlockType(
        256, Integers(-32, 31), 32, SignedScales(16, -128, 127, 0, (-32.0, -31.0, -30.0), reach=0),
        (_codes(4, 0, 64, 256), _codes(2, 4, 32, 256), Plane("scales", 16, 8, 0, 16), _D),
    ),
    "iq4_nl": BlockType(32, Table(IQ4), 0, TableScale(_IQ4_STEPS), (_D, _codes(4, 0, 16, 32))),
    "iq4_xs": BlockType(
        256, Table(IQ4), 0, SignedScales(8, -32, 31, 32, _IQ4_STEPS),
        (_D, Plane("scales", 8, 2, 4, 1), Plane("scales", 8, 4, 0, 1), _codes(4, 0, 16, 256)),
    ),
    "tq1_0": BlockType(256, Integers(-1, 1), 1, TableScale((1.0, 1.3, 1.6, 2.0, 2.5, 3.2)), (Trits("codes"), _D)),
    "tq2_0": BlockType(
        256, Integers(-1, 1), 1, TableScale((1.0, 1.3, 1.6, 2.0, 2.5, 3.2)), (_codes(2, 0, 32, 256), _D)
    ),
    "mxfp4": BlockType(32, Table(FP4), 0, PowerScales(1, 1, 1), (Plane("scales", 1, 8, 0, 1), _codes(4, 0, 16, 32))),
    "nvfp4": BlockType(64, Table(FP4), 0, E4M3Scales(4, 2, 6), (Plane("scales", 4, 8, 0, 4), _codes(4, 0, 8, 64))),
}  # fmt: skip
"""The types that irlab encodes itself."""

FLOAT_TYPES: Final = ("f32", "f16", "bf16")

VECTOR_TYPES: Final[dict[str, tuple[int, int]]] = {
    "iq1_s": (256, 50), "iq1_m": (256, 56), "iq2_xxs": (256, 66), "iq2_xs": (256, 74), "iq2_s": (256, 82),
    "iq3_xxs": (256, 98), "iq3_s": (256, 110),
}  # fmt: skip
"""Types whose codes stand for several numbers at once: numbers and bytes of a block. Only ggml encodes them."""
