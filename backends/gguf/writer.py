"""How does a GGUF file get onto disk: metadata first, then pieces of tensors in their places?

The format is specified in ggml's docs/gguf.md. Constants come from gguf-py; the layout is written here, because
gguf-py's own writer wants each tensor whole in memory.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from irlab.backends.gguf.ggml import GGMLType
from irlab.errors import InputError

Scalar = bool | int | float | str | np.generic
MetadataValue = Scalar | Sequence[str] | npt.NDArray[Any]
"""A metadata value. Python ints are stored as u32, floats as f32; numpy scalars and arrays keep their own type."""

_ALIGNMENT: int = gguf.GGUF_DEFAULT_ALIGNMENT
_MAX_DIMS = 4
_MAX_NAME_BYTES = 63  # GGML_MAX_NAME - 1

_VALUE_TYPES = {
    np.dtype(dtype): int(gguf.GGUFValueType[name])
    for dtype, name in [
        ("u1", "UINT8"), ("i1", "INT8"), ("u2", "UINT16"), ("i2", "INT16"), ("u4", "UINT32"), ("i4", "INT32"),
        ("u8", "UINT64"), ("i8", "INT64"), ("f4", "FLOAT32"), ("f8", "FLOAT64"), ("?", "BOOL"),
    ]
}  # fmt: skip
_STRING, _ARRAY = int(gguf.GGUFValueType.STRING), int(gguf.GGUFValueType.ARRAY)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's place in the file. `shape` is outermost first, as in numpy and torch; the last dimension is a row."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType

    @property
    def size_bytes(self) -> int:
        rows = math.prod(self.shape[:-1])
        return rows * self.type.row_bytes(self.shape[-1] if self.shape else 1)


class GGUFWriter:
    """Writes one GGUF file, the bytes of each tensor in pieces of any size, in any order across tensors.

        with GGUFWriter(path, metadata, infos) as file:
            file.write("token_embd.weight", rows)

    Writes to `path` itself: `irlab.outputs.whole_output` makes the file appear whole or not at all. Raises InputError
    for what the format cannot hold, before anything is written; leaving the block with bytes missing is an error.
    """

    def __init__(self, path: Path, metadata: Mapping[str, MetadataValue], infos: Sequence[TensorInfo]) -> None:
        _check(infos)
        self._path = path
        self._head = _head(metadata, infos)
        self._at: dict[str, int] = {}
        self._end: dict[str, int] = {}
        end = len(self._head)
        for info in infos:
            self._at[info.name], self._end[info.name] = end, end + info.size_bytes
            end += padded(info.size_bytes)
        self._size = end

    def __enter__(self) -> GGUFWriter:
        self._file = open(self._path, "wb", buffering=0)
        self._put(0, self._head)
        return self

    def write(self, name: str, data: npt.NDArray[Any]) -> None:
        """Append bytes to tensor `name`."""
        at = self._at[name]
        if at + data.nbytes > self._end[name]:
            raise RuntimeError(f"more bytes came for {name} than were announced")
        self._put(at, np.ascontiguousarray(data).data.cast("B"))
        self._at[name] = at + data.nbytes

    def _put(self, at: int, data: bytes | memoryview) -> None:
        self._file.seek(at)
        rest = memoryview(data)
        while rest:  # an unbuffered write may be partial
            rest = rest[self._file.write(rest) :]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._file.truncate(self._size)  # what lies between tensors is zero
        missing = {name: end - self._at[name] for name, end in self._end.items() if self._at[name] != end}
        if missing and kind is None:
            name, count = next(iter(missing.items()))
            raise RuntimeError(f"{name}: {count} bytes less came than were announced")


def write(out: Path, metadata: Mapping[str, MetadataValue], tensors: Mapping[TensorInfo, npt.NDArray[Any]]) -> None:
    """Write a GGUF file of tensors that are in memory, as bytes of their type."""
    with GGUFWriter(out, metadata, list(tensors)) as file:
        for info, data in tensors.items():
            file.write(info.name, data)


class ShardsWriter(ExitStack):
    """As GGUFWriter: STEM-00001-of-0000N.gguf ... in `folder`, each with at most `split_bytes` of tensors (or one).

    The first one is the file to load: it holds the metadata, and llama.cpp finds the others.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        metadata: Mapping[str, MetadataValue],
        infos: Sequence[TensorInfo],
        split_bytes: int,
    ) -> None:
        super().__init__()
        _check(infos)
        groups = _split(infos, split_bytes)
        self._writer_of: dict[str, GGUFWriter] = {}
        self._writers: list[GGUFWriter] = []
        for index, group in enumerate(groups):
            name: str = gguf.gguf_writer.SHARD_NAME_FORMAT.format(stem, index + 1, len(groups))
            keys = _shard_metadata(metadata, index, len(groups), len(infos))
            self._writers.append(GGUFWriter(folder / name, keys, group))
            self._writer_of |= dict.fromkeys((info.name for info in group), self._writers[-1])

    def __enter__(self) -> ShardsWriter:
        for writer in self._writers:
            self.enter_context(writer)
        return self

    def write(self, name: str, data: npt.NDArray[Any]) -> None:
        """Append bytes to tensor `name`."""
        self._writer_of[name].write(name, data)


def shard_bytes(metadata: Mapping[str, MetadataValue], infos: Sequence[TensorInfo], split_bytes: int) -> list[int]:
    """The sizes of the files that a ShardsWriter makes of these."""
    groups = _split(infos, split_bytes)
    return [
        size_bytes(_shard_metadata(metadata, index, len(groups), len(infos)), group)
        for index, group in enumerate(groups)
    ]


def _shard_metadata(
    metadata: Mapping[str, MetadataValue], index: int, count: int, tensors: int
) -> Mapping[str, MetadataValue]:
    keys = gguf.Keys.Split
    place: dict[str, MetadataValue] = {
        keys.LLM_KV_SPLIT_NO: np.uint16(index),
        keys.LLM_KV_SPLIT_COUNT: np.uint16(count),
        keys.LLM_KV_SPLIT_TENSORS_COUNT: np.int32(tensors),
    }
    return {**metadata, **place} if index == 0 else place


def size_bytes(metadata: Mapping[str, MetadataValue], infos: Sequence[TensorInfo]) -> int:
    """The size of the file that a GGUFWriter makes of these."""
    return len(_head(metadata, infos)) + sum(padded(info.size_bytes) for info in infos)


def _check(infos: Sequence[TensorInfo]) -> None:
    seen: set[str] = set()
    for info in infos:
        if info.name in seen:
            raise InputError(f"two tensors are called {info.name}")
        seen.add(info.name)
        if len(info.name.encode()) > _MAX_NAME_BYTES:
            raise InputError(f"tensor name {info.name} is longer than {_MAX_NAME_BYTES} bytes")
        if len(info.shape) > _MAX_DIMS or any(size < 1 for size in info.shape):
            raise InputError(
                f"{info.name}: GGUF cannot hold the shape {list(info.shape)} (1 to {_MAX_DIMS} dimensions)"
            )


def _split(infos: Sequence[TensorInfo], split_bytes: int) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in infos:
        size = padded(info.size_bytes)
        if shards[-1] and filled + size > split_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(info)
        filled += size
    return shards


def _head(metadata: Mapping[str, MetadataValue], infos: Sequence[TensorInfo]) -> bytes:
    """Everything before the tensor data, padded."""
    out = bytearray(struct.pack("<IIQQ", gguf.GGUF_MAGIC, gguf.GGUF_VERSION, len(infos), len(metadata)))
    for key, value in metadata.items():
        out += _string(key)
        out += _value(key, value)
    offset = 0
    for info in infos:
        out += _string(info.name)
        out += struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *reversed(info.shape))
        out += struct.pack("<IQ", info.type.id, offset)
        offset += padded(info.size_bytes)
    out += bytes(padded(len(out)) - len(out))
    return bytes(out)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: MetadataValue) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, Sequence):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    if isinstance(value, bool | np.bool_):
        array: npt.NDArray[Any] = np.array(value, np.bool_)
    elif isinstance(value, int):
        if not 0 <= value < 1 << 32:
            raise InputError(f"metadata {key}: {value} is no u32", "pass a numpy scalar of a wider type")
        array = np.array(value, np.uint32)
    elif isinstance(value, float):
        array = np.array(value, np.float32)
    else:
        array = np.asarray(value)
    kind = _VALUE_TYPES.get(array.dtype)
    if kind is None or array.ndim > 1:
        raise InputError(f"metadata {key}: GGUF has no type for {array.dtype}{list(array.shape)}")
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return struct.pack("<I", kind) + data if array.ndim == 0 else struct.pack("<IIQ", _ARRAY, kind, len(array)) + data


def padded(size: int) -> int:
    """What a tensor of `size` bytes takes in the file."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
