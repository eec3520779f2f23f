"""Which encodings are GGML types, and how is what they hold written into GGML blocks, code for code?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from irlab.backends.gguf.ggml import GGMLType, ggml_type, quantize, require_encodable
from irlab.encodings import Codes, Encoding, GGMLEncoding
from irlab.encodings.base import AnyArray
from irlab.encodings.ggml.equal import EQUAL, Equal
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


def exact(encoding: Encoding, columns: int) -> Exact | None:
    """How GGML holds the codes of `encoding` in rows of `columns` numbers; None if it does not."""
    if isinstance(encoding, GGMLEncoding):
        return Exact(ggml_type(encoding.type_name), lambda codes: codes["blocks"])
    for equal in EQUAL:
        repeats = equal.repeats(encoding, columns)
        if repeats:
            return Exact(ggml_type(equal.type_name), partial(_repacked, equal), repeats)
    return None


def _repacked(equal: Equal, codes: Codes) -> AnyArray:
    return equal.to_blocks(codes)["blocks"]
