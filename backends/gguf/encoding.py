"""Which encodings are GGML types, and how is what they hold written into GGML blocks, code for code?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from irlab.backends.gguf.ggml import GGMLType, ggml_type, quantize, require_encodable
from irlab.encodings import Codes, Encoding, FloatEncoding, GGMLEncoding, IntegerEncoding, TableEncoding
from irlab.encodings.base import AnyArray
from irlab.encodings.ggml.encoding import BlockEncoding
from irlab.types import f16
from irlab.weights import Encode, static_shape


@dataclass(frozen=True)
class EncodeByGGML(Encode, text_name=""):
    """Rows encoded by ggml's own code, to the bytes that llama.cpp's quantiser writes."""

    def require_encodable(self, name: str) -> None:
        """Raise InputError, naming the weight, where ggml cannot encode it: it is not installed, or asks for
        importances of columns."""
        assert isinstance(self.encoding, GGMLEncoding)
        require_encodable(self.encoding.type_name, static_shape(self.type)[-1], self.weights, name)

    def codes(self, start: int, stop: int) -> Codes:
        assert isinstance(self.encoding, GGMLEncoding)
        return {"blocks": quantize(self.source.rows(start, stop), self.encoding.type_name, self.weights)}


@dataclass(frozen=True)
class Exact:
    """A GGML type that holds the very codes of an encoding, and how they become its bytes u8[rows, row_bytes]."""

    type: GGMLType
    repack: Callable[[Codes], AnyArray]
    blocks_per_scale: int = 1
    """In how many blocks a scale is repeated: where groups are larger, the numbers are the same and take more bits."""


@dataclass(frozen=True)
class _Same:
    """A kind of encoding whose codes are those of a GGML type, block by block."""

    type_name: str
    matches: Callable[[Encoding], bool]
    scale: str
    """The field of the type that holds the scales."""


def _integers(bits: int) -> Callable[[Encoding], bool]:
    return lambda e: isinstance(e, IntegerEncoding) and e.symmetric and e.bits == bits and e.scale is f16


_SAME: Final = (
    _Same("q4_0", _integers(4), "d"),
    _Same("q5_0", _integers(5), "d"),
    _Same("q8_0", _integers(8), "d"),
    _Same("iq4_nl", lambda e: isinstance(e, TableEncoding) and e.table == "iq4_nl" and e.scale is f16, "d"),
    _Same("mxfp4", lambda e: isinstance(e, FloatEncoding) and e.element == "e2m1" and e.scale == "e8m0", "scales"),
)
"""All of blocks of 32. NVFP4 is not among them: a block has no place for the scale of the tensor."""


def exact(encoding: Encoding, columns: int) -> Exact | None:
    """How GGML holds the codes of `encoding` in rows of `columns` numbers; None if it does not."""
    if isinstance(encoding, GGMLEncoding):
        return Exact(ggml_type(encoding.type_name), lambda codes: codes["blocks"])
    for same in _SAME:
        if same.matches(encoding):
            target = BlockEncoding(same.type_name)
            group = getattr(encoding, "group", 0)
            width = group if group > 0 else columns
            if width % target.kind.size == 0:
                repack = partial(_as_blocks, target, same.scale)
                return Exact(ggml_type(same.type_name), repack, width // target.kind.size)
    return None


def _as_blocks(target: BlockEncoding, field: str, codes: Codes) -> AnyArray:
    """Codes under scales as blocks. A group of several blocks repeats its scale in each: numbers stay the same."""
    numbers, scales = codes["codes"], codes["scales"]
    blocks = numbers.shape[1] // target.kind.size
    return target.assemble(numbers, {field: np.repeat(scales, blocks // scales.shape[1], axis=1)})["blocks"]
