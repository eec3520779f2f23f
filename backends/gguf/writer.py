"""How does a GGUF file get onto disk: metadata first, then tensors streamed in order, whole or not at all?

The format is specified in ggml's docs/gguf.md. Constants come from gguf-py; the layout is written here, because
gguf-py's own writer wants each tensor whole in memory.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

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


@dataclass(frozen=True)
class Tensor:
    """A tensor to write. `chunks()` yields its bytes in order, in pieces of any size; it is called once."""

    info: TensorInfo
    chunks: Callable[[], Iterable[npt.NDArray[np.uint8]]]


class Staged:
    """Files written completely under their final names, in a folder beside the target. A context manager.

    Leaving it without `commit()` or `reject()` removes them. In between, `first` can be loaded by a runtime.
    """

    def __init__(self, target: Path, folder: Path, names: Sequence[str]) -> None:
        self._target, self._folder, self._names = target, folder, tuple(names)

    @property
    def paths(self) -> list[Path]:
        return [self._folder / name for name in self._names]

    @property
    def first(self) -> Path:
        """The file to hand to llama.cpp; it finds the other shards."""
        return self.paths[0]

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def commit(self) -> list[Path]:
        """Moves the files into place, replacing what is there, and returns where they are."""
        return self._move("")

    def reject(self) -> list[Path]:
        """Leaves the files beside the target as NAME.rejected, and returns where they are."""
        return self._move(".rejected")

    def _move(self, suffix: str) -> list[Path]:
        finals = [self._target.with_name(name + suffix) for name in self._names]
        # The first shard comes last: without it no reader finds the others.
        for path, final in reversed(list(zip(self.paths, finals, strict=True))):
            os.replace(path, final)
        self.discard()
        return finals

    def discard(self) -> None:
        """Removes what has not been moved."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Staged:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()


def stage(
    target: Path,
    metadata: Mapping[str, MetadataValue],
    tensors: Sequence[Tensor],
    *,
    split_bytes: int = 0,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda size_bytes: None,
) -> Staged:
    """Writes a GGUF file beside `target`, tensor by tensor, holding one chunk in memory.

    split_bytes: most tensor bytes in one shard (NAME-00001-of-0000N.gguf); 0: one file.
    progress:    called with the number of tensor bytes just written.

    Raises InputError if the target exists (unless `overwrite`), cannot be written, or needs more disk than is free;
    nothing is left behind then, or on any other exception.
    """
    _check([tensor.info for tensor in tensors])
    shards = _split(tensors, split_bytes)
    names = _file_names(target.name, len(shards))
    for name in names:
        if not overwrite and target.with_name(name).exists():
            raise InputError(f"{target.with_name(name)} exists", "--force replaces it")
    heads = [
        _head({**(metadata if index == 0 else {}), **_split_keys(index, len(shards), len(tensors))}, shard)
        for index, shard in enumerate(shards)
    ]
    needed = sum(map(len, heads)) + sum(_padded(tensor.info.size_bytes) for tensor in tensors)
    folder = _make_folder(target, needed)
    staged = Staged(target, folder, names)
    try:
        for path, head, shard in zip(staged.paths, heads, shards, strict=True):
            with open(path, "wb", buffering=0) as file:
                file.write(head)
                for tensor in shard:
                    _write_tensor(file, tensor, progress)
    except OSError as error:
        staged.discard()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(f"{target}: the disk is full ({_gigabytes(needed)} are needed)") from None
        raise
    except BaseException:
        staged.discard()
        raise
    return staged


def write(target: Path, metadata: Mapping[str, MetadataValue], tensors: Sequence[Tensor], **options: Any) -> list[Path]:
    """`stage`, then commit: for files that nobody checks before they appear."""
    with stage(target, metadata, tensors, **options) as staged:
        return staged.commit()


def _write_tensor(file: IO[bytes], tensor: Tensor, progress: Callable[[int], None]) -> None:
    written = 0
    for chunk in tensor.chunks():
        data = np.ascontiguousarray(chunk).data.cast("B")
        while len(data):  # an unbuffered write may be partial
            count = file.write(data)
            written += count
            progress(count)
            data = data[count:]
    size = tensor.info.size_bytes
    if written != size:
        raise RuntimeError(f"{tensor.info.name}: {written} bytes came where {size} were announced")
    file.write(bytes(_padded(size) - size))


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


def _split(tensors: Sequence[Tensor], split_bytes: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = _padded(tensor.info.size_bytes)
        if split_bytes and shards[-1] and filled + size > split_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    return shards


def _file_names(name: str, shards: int) -> list[str]:
    if shards == 1:
        return [name]
    stem = name.removesuffix(".gguf")
    return [gguf.gguf_writer.SHARD_NAME_FORMAT.format(stem, index + 1, shards) for index in range(shards)]


def _split_keys(index: int, shards: int, tensors: int) -> dict[str, MetadataValue]:
    if shards == 1:
        return {}
    keys = gguf.Keys.Split
    return {
        keys.LLM_KV_SPLIT_NO: np.uint16(index),
        keys.LLM_KV_SPLIT_COUNT: np.uint16(shards),
        keys.LLM_KV_SPLIT_TENSORS_COUNT: np.int32(tensors),
    }


def _head(metadata: Mapping[str, MetadataValue], tensors: Sequence[Tensor]) -> bytes:
    """Everything before the tensor data, padded."""
    out = bytearray(struct.pack("<IIQQ", gguf.GGUF_MAGIC, gguf.GGUF_VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _string(key)
        out += _value(key, value)
    offset = 0
    for tensor in tensors:
        info = tensor.info
        out += _string(info.name)
        out += struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *reversed(info.shape))
        out += struct.pack("<IQ", info.type.id, offset)
        offset += _padded(info.size_bytes)
    out += bytes(_padded(len(out)) - len(out))
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


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _make_folder(target: Path, needed: int) -> Path:
    parent = target.parent
    if not parent.is_dir():
        raise InputError(f"{parent} is not a directory")
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise InputError(f"{target} needs {_gigabytes(needed)}, and {_gigabytes(free)} are free on that disk")
    try:
        return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=parent))
    except OSError as error:
        raise InputError(f"{parent} cannot be written: {error.strerror}") from None


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
