"""Which encodings are GGML types: the GGML types as encodings, and irlab's integers repacked code for code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irlab.backends.gguf.ggml import GGMLType, dequantize, ggml_type, quantize
from irlab.encodings import Codes, Encoding, Extent, IntegerEncoding
from irlab.encodings.base import AnyArray, Floats
from irlab.errors import InputError
from irlab.types import TensorType, f16, tensor, u8

BLOCK = 32
"""Numbers in a block of Q4_0 and Q8_0."""

_INTEGER_TYPES = {4: "Q4_0", 8: "Q8_0"}


@dataclass(frozen=True)
class GGMLEncoding(Encoding, family="ggml"):
    """Rows stored in a GGML type, `ggml<q4_k>`. One part: "blocks", u8[..., row_bytes], as in the file."""

    type_name: str

    @property
    def ggml_type(self) -> GGMLType:
        return ggml_type(self.type_name)

    def bits_per_weight(self, columns: int) -> float:
        return self.ggml_type.bits_per_weight

    def check_shape(self, shape: tuple[int, ...]) -> None:
        self.ggml_type.row_bytes(shape[-1] if shape else 1)

    def encode(self, rows: AnyArray, importance: Floats | None = None, extent: Extent | None = None) -> Codes:
        return {"blocks": quantize(rows, self.ggml_type, importance)}

    def decode(self, codes: Codes) -> Floats:
        return dequantize(codes["blocks"], self.ggml_type)

    def packed_types(self, shape: tuple[int, ...]) -> dict[str, TensorType]:
        return {"blocks": tensor(u8, (*shape[:-1], self.ggml_type.row_bytes(shape[-1])))}

    def pack(self, codes: Codes) -> Codes:
        return codes

    def unpack(self, packed: Codes, columns: int) -> Codes:
        return packed

    def arguments(self) -> tuple[str, ...]:
        return (self.type_name,)

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> GGMLEncoding:
        if len(arguments) != 1:
            raise ValueError("it needs one argument, a GGML type")
        try:
            return cls(ggml_type(arguments[0]).name.lower())
        except InputError as error:
            raise ValueError(error.message) from None


def exact_type(encoding: Encoding, columns: int) -> GGMLType | None:
    """The GGML type that holds the very codes of `encoding`, or None if no type does."""
    if isinstance(encoding, GGMLEncoding):
        return encoding.ggml_type
    if isinstance(encoding, IntegerEncoding) and encoding.symmetric and encoding.scale is f16:
        whole_blocks = (encoding.group or columns) % BLOCK == 0
        name = _INTEGER_TYPES.get(encoding.bits)
        return ggml_type(name) if name and whole_blocks else None
    return None


def repack(codes: Codes, encoding: Encoding) -> AnyArray:
    """`codes` as the bytes of the type that `exact_type` named: u8[rows, row_bytes].

    A group of several blocks repeats its scale in each: the decoded numbers stay the same.
    """
    if isinstance(encoding, GGMLEncoding):
        return codes["blocks"]
    assert isinstance(encoding, IntegerEncoding)
    scales = codes["scales"]
    rows, columns = codes["codes"].shape
    blocks = columns // BLOCK
    d = np.repeat(scales, blocks // scales.shape[-1], axis=-1).reshape(rows, blocks, 1).view(np.uint8)
    q = codes["codes"].reshape(rows, blocks, BLOCK)
    if encoding.bits == 8:
        stored: AnyArray = q.view(np.uint8)
    else:
        # Q4_0: byte i holds number i in its low half and number i + 16 in its high half, each plus 8.
        nibbles = (q + np.int8(8)).view(np.uint8)
        stored = nibbles[..., : BLOCK // 2] | nibbles[..., BLOCK // 2 :] << 4
    return np.concatenate([d, stored], axis=-1).reshape(rows, -1)
