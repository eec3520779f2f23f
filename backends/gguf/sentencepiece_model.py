"""What pieces does a SentencePiece `tokenizer.model` hold?

The file is a protocol buffer (sentencepiece_model.proto); the four kinds of fields read here are walked directly, so
that neither sentencepiece nor protobuf is needed. Every length is checked against the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from irlab.errors import InputError

_BPE = 2  # TrainerSpec.ModelType
_MAX_PIECES = 1 << 24


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary. `kind` numbers NORMAL 1, UNKNOWN 2, CONTROL 3, USER_DEFINED 4, UNUSED 5, BYTE 6:
    the same as GGUF's token types."""

    text: str
    score: float
    kind: int


@dataclass
class SentencePieceModel:
    """The pieces in order of their ids, and whether text gets a leading space."""

    pieces: list[Piece] = field(default_factory=list)
    is_bpe: bool = False
    adds_space_prefix: bool = True


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Reads a `tokenizer.model`. Raises InputError for a file that is not one, such as Llama 3's (tiktoken's)."""
    model = SentencePieceModel()
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1 and isinstance(value, bytes):
                model.pieces.append(_piece(value))
                if len(model.pieces) > _MAX_PIECES:
                    raise ValueError("too many pieces")
            elif number == 2 and isinstance(value, bytes):
                model.is_bpe = dict(_fields(value)).get(3) == _BPE
            elif number == 3 and isinstance(value, bytes):
                model.adds_space_prefix = bool(dict(_fields(value)).get(3, 1))
    except (ValueError, struct.error) as error:
        raise InputError(f"{path} is not a SentencePiece model: {error}") from None
    if not model.pieces:
        raise InputError(f"{path} is not a SentencePiece model: it holds no pieces")
    return model


def _piece(data: bytes) -> Piece:
    values = dict(_fields(data))
    text, score, kind = values.get(1, b""), values.get(2, 0.0), values.get(3, 1)
    if not isinstance(text, bytes) or not isinstance(score, float) or not isinstance(kind, int) or not 1 <= kind <= 6:
        raise ValueError("a piece has fields of other types")
    return Piece(text.decode(), score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """The (field number, value) pairs of a message: varints as int, 32-bit as float, the rest as bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if size > len(data) - position:
            raise ValueError(f"{size} bytes announced at byte {position}, {len(data) - position} left")
        chunk = data[position : position + size]
        position += size
        yield number, struct.unpack("<f", chunk)[0] if wire == 5 else chunk


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("it ends inside a number")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError(f"a number at byte {position} is too long")
