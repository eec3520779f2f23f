"""Which encodings are GGML types, and how is what they hold written into GGML blocks, code for code?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from irlab.backends.gguf.ggml import GGMLType, ggml_type, quantize
from irlab.encodings import Codes, Encoding, GGMLEncoding, IntegerEncoding
from irlab.encodings.base import AnyArray
from irlab.types import f16
from irlab.weights import Encode

BLOCK: Final = 32
"""Numbers in a block of Q4_0, Q5_0 and Q8_0."""


@dataclass(frozen=True)
class EncodeByGGML(Encode, text_name=""):
    """Rows encoded by ggml's own code, to the bytes that llama.cpp's quantiser writes."""

    def codes(self, start: int, stop: int) -> Codes:
        assert isinstance(self.encoding, GGMLEncoding)
        return {"blocks": quantize(self.source.rows(start, stop), self.encoding.type_name)}


@dataclass(frozen=True)
class Exact:
    """A GGML type that holds the very codes of an encoding, and how they become its bytes u8[rows, row_bytes]."""

    type: GGMLType
    repack: Callable[[Codes], AnyArray]


def exact(encoding: Encoding, columns: int) -> Exact | None:
    """How GGML holds the codes of `encoding` in rows of `columns` numbers; None if it does not."""
    if isinstance(encoding, GGMLEncoding):
        return Exact(ggml_type(encoding.type_name), lambda codes: codes["blocks"])
    if isinstance(encoding, IntegerEncoding) and encoding.symmetric and encoding.scale is f16:
        whole_blocks = (encoding.group if encoding.group > 0 else columns) % BLOCK == 0
        name = {4: "q4_0", 5: "q5_0", 8: "q8_0"}.get(encoding.bits)
        if name is not None and whole_blocks:
            return Exact(ggml_type(name), lambda codes: _as_blocks(name, codes))
    return None


def _as_blocks(name: str, codes: Codes) -> AnyArray:
    """Integers under an f16 as blocks. A group of several blocks repeats its scale in each: numbers stay the same."""
    from irlab.encodings.ggml.encoding import BlockEncoding

    numbers, scales = codes["codes"], codes["scales"]
    blocks = numbers.shape[1] // BLOCK
    d = np.repeat(scales, blocks // scales.shape[1], axis=1)
    return BlockEncoding(name).assemble(numbers, {"d": d})["blocks"]
