"""Rows as GGML stores them, `ggml<q4_k>`: encoded by our own searches where codes stand for single numbers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import ml_dtypes
import numpy as np

from ...errors import InputError
from ...floats import as_f16, as_f32
from ...types import TensorType, tensor, u8
from ..base import AnyArray, Codes, Encoding, Floats
from ..grid import Extent, Points
from ..levels import LevelEncoding, extent_of
from .layouts import pack_blocks, unpack_blocks
from .types import BLOCK_TYPES, FLOAT_TYPES, VECTOR_TYPES, BlockType

_LARGEST: Final = 1e9
"""No scale of f16 reaches further; and up to here no sum of weighted squares overflows."""


@dataclass(frozen=True)
class GGMLEncoding(Encoding, family="ggml"):
    """Rows in a GGML type, `ggml<q4_k>`; made by `ggml(name)`. One part, "blocks": u8[..., row_bytes], as in a file."""

    type_name: str

    @property
    @abstractmethod
    def block(self) -> tuple[int, int]:
        """The numbers and the bytes of a block."""

    def bits_per_weight(self, columns: int) -> float:
        size, size_bytes = self.block
        return 8 * size_bytes / size

    def check_shape(self, shape: tuple[int, ...]) -> None:
        size = self.block[0]
        if not shape or not shape[-1] or shape[-1] % size:
            columns = shape[-1] if shape else 1
            raise InputError(
                f"rows of {columns} numbers are not whole blocks of {self.type_name.upper()} ({size} numbers)",
                "choose a type with smaller blocks for this tensor",
            )

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` numbers."""
        size, size_bytes = self.block
        return columns // size * size_bytes

    def packed_types(self, shape: tuple[int, ...]) -> dict[str, TensorType]:
        return {"blocks": tensor(u8, (*shape[:-1], self.row_bytes(shape[-1])))}

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
            return ggml(arguments[0])
        except InputError as error:
            raise ValueError(error.message) from None


def ggml(name: str) -> GGMLEncoding:
    """The encoding of the GGML type called `name`, in any case. Raises InputError for one that does not exist."""
    key = name.lower()
    if key in BLOCK_TYPES:
        return BlockEncoding(key)
    if key in FLOAT_TYPES:
        return FloatEncoding(key)
    if key in VECTOR_TYPES:
        return VectorEncoding(key)
    known = " ".join(sorted((*BLOCK_TYPES, *FLOAT_TYPES, *VECTOR_TYPES)))
    raise InputError(f"unknown GGML type '{name}'", f"known: {known}")


@dataclass(frozen=True)
class BlockEncoding(LevelEncoding, GGMLEncoding):
    """A type of codes under scales: see the table in types.py, and layouts.py for the bytes."""

    @cached_property
    def kind(self) -> BlockType:
        """The row of the table."""
        return BLOCK_TYPES[self.type_name]

    @property
    def block(self) -> tuple[int, int]:
        return self.kind.size, self.kind.size_bytes

    def unit(self, columns: int) -> int:
        return self.kind.size

    def choose(self, x: Floats, importance: Floats | None, extent: Extent | None) -> Points:
        largest = extent_of(x).largest
        if largest > _LARGEST:
            raise InputError(f"numbers as large as {largest:.3g} do not fit scales of {self.type_name.upper()}")
        size = self.kind.size
        weights = np.empty((0, size), np.float32) if importance is None else importance.reshape(-1, size)
        fields = self.kind.scales.choose(x.reshape(-1, size), weights, self.kind.levels)
        return self._points(fields, len(x))

    def _points(self, fields: dict[str, AnyArray], rows: int) -> Points:
        scale, offset = self.kind.scales.scaling(fields)
        parts = {name: field.reshape(rows, -1) for name, field in fields.items()}
        return Points(
            self.kind.levels,
            scale.reshape(rows, -1),
            parts,
            offset=None if offset is None else offset.reshape(rows, -1),
        )

    def assemble(self, numbers: AnyArray, parts: Codes) -> Codes:
        stored = numbers.view(np.uint8) + np.uint8(self.kind.bias)
        counts = {part.field: part.count for part in self.kind.parts}
        fields = {name: part.reshape(-1, counts[name]) for name, part in {**parts, "codes": stored}.items()}
        return {"blocks": pack_blocks(self.kind.parts, fields).reshape(len(numbers), -1)}

    def split(self, codes: Codes) -> tuple[AnyArray, Points]:
        blocks = codes["blocks"]
        fields = unpack_blocks(self.kind.parts, blocks.reshape(-1, self.kind.size_bytes))
        stored = fields.pop("codes") - np.uint8(self.kind.bias)
        return stored.view(self.kind.levels.dtype).reshape(len(blocks), -1), self._points(fields, len(blocks))

    def unpack(self, packed: Codes, columns: int) -> Codes:
        fields = unpack_blocks(self.kind.parts, packed["blocks"].reshape(-1, self.kind.size_bytes))
        if not all(np.isfinite(fields[name]).all() for name in ("d", "dmin", "m") if name in fields):
            raise InputError(f"a stored scale of {self} is not finite")
        return packed


@dataclass(frozen=True)
class FloatEncoding(GGMLEncoding):
    """Floats as a GGUF file holds them."""

    @property
    def block(self) -> tuple[int, int]:
        return 1, self._dtype.itemsize

    @property
    def _dtype(self) -> np.dtype[Any]:
        kinds: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
        found: np.dtype[Any] = np.dtype(kinds[self.type_name])
        return found

    def encode(self, rows: AnyArray, importance: Floats | None = None, extent: Extent | None = None) -> Codes:
        try:
            floats = as_f16(rows) if self.type_name == "f16" else rows.astype(self._dtype)
        except OverflowError as error:
            raise InputError(str(error), "store this model as bf16 or f32") from None
        return {"blocks": np.ascontiguousarray(floats).view(np.uint8)}

    def decode(self, codes: Codes) -> Floats:
        return as_f32(np.ascontiguousarray(codes["blocks"]).view(self._dtype))


@dataclass(frozen=True)
class VectorEncoding(GGMLEncoding):
    """A type whose codes stand for several numbers at once. It is decoded by gguf-py, and encoded by what is registered
    as "ggml" under the entry-point group `irlab.encoders`: a function of (rows, type name, importance) that returns
    u8[..., row_bytes]."""

    @property
    def block(self) -> tuple[int, int]:
        return VECTOR_TYPES[self.type_name]

    def encode(self, rows: AnyArray, importance: Floats | None = None, extent: Extent | None = None) -> Codes:
        from ...registry import encoder

        return {"blocks": encoder("ggml")(rows, self.type_name, importance)}

    def decode(self, codes: Codes) -> Floats:
        import gguf

        kind = gguf.GGMLQuantizationType[self.type_name.upper()]
        return np.asarray(gguf.dequantize(codes["blocks"], kind), np.float32)
