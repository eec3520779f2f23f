"""The safetensors format: a reader that trusts nothing and maps rows without loading tensors, and a streaming writer.

A file is a u64 header length, a JSON header {name: {dtype, shape, data_offsets}}, and the bytes of the tensors without
gaps or overlaps (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from ..errors import InputError, IRError
from ..types import DTYPES, DType, TensorType, tensor
from .mapped import mapped
from .recipe import AnyArray, numpy_dtype, static_shape

MAX_HEADER_BYTES: Final = 100_000_000
"""As in the reference implementation."""

_ODD_NAMES: Final = {"bool": "BOOL", "f8e4m3": "F8_E4M3", "f8e5m2": "F8_E5M2"}
_NAME_OF: Final = {dtype: _ODD_NAMES.get(dtype.name, dtype.name.upper()) for dtype in DTYPES.values()}
_DTYPE_OF: Final = {name: dtype for dtype, name in _NAME_OF.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type (None for a dtype that irlab lacks) and where its bytes begin in the file."""

    name: str
    dtype_name: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def type(self) -> TensorType | None:
        dtype = _DTYPE_OF.get(self.dtype_name)
        return None if dtype is None else tensor(dtype, self.shape)


@dataclass(frozen=True)
class SafetensorsFile:
    """The checked header of a file. Holds no open file: rows are mapped when asked for, and unmapped with the array."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]

    def entry(self, name: str) -> Entry:
        """The tensor called `name`; InputError if it is missing or of a dtype that irlab lacks."""
        entry = self.entries.get(name)
        if entry is None:
            raise InputError(f"{self.path}: no tensor called '{name}'")
        if entry.type is None:
            raise InputError(f"{self.path}: tensor '{name}' has the dtype {entry.dtype_name}, which is not supported")
        return entry

    def read(self, name: str, start: int, stop: int) -> AnyArray:
        """Rows [start:stop] of tensor `name` (one row if it has rank 0): a read-only array on a private mapping."""
        entry = self.entry(name)
        assert entry.type is not None
        dtype = numpy_dtype(entry.type.dtype)
        rows = entry.shape[0] if entry.shape else 1
        if not 0 <= start <= stop <= rows:
            raise IRError(f"rows [{start}:{stop}] of '{name}' are outside its {rows} rows")
        row = math.prod(entry.shape[1:])
        shape = (stop - start, *entry.shape[1:])
        size = (stop - start) * row * dtype.itemsize
        found = mapped(self.path, entry.offset + start * row * dtype.itemsize, size, name)
        return found.view(dtype).reshape(shape)


def open_safetensors(path: Path) -> SafetensorsFile:
    """Read and check the header of `path`; the result is kept while the file does not change. Raises InputError,
    naming the file and the tensor, for anything that is not exactly a safetensors file."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        hint = "the weights are missing; without them work --plan, dumps, and passes that read none"
        raise InputError(f"{path}: {error.strerror}", hint) from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return _open(Path(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=512)
def _open(path: Path, size_bytes: int, _modified_ns: int) -> SafetensorsFile:
    try:
        with open(path, "rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > MAX_HEADER_BYTES or 8 + length > size_bytes:
                raise InputError(f"{path}: {_bad_length(len(prefix), length, size_bytes)}")
            text = file.read(length)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
    except _DuplicateKey as error:
        raise InputError(f"{path}: the header names '{error.args[0]}' twice") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: the header is not JSON") from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InputError(f"{path}: __metadata__ is not a table of strings")
    data_start = 8 + length
    entries = {name: _entry(path, name, fields, data_start) for name, fields in header.items()}
    _check_cover(path, list(entries.values()), data_start, size_bytes)
    return SafetensorsFile(path, entries, metadata)


def _bad_length(prefix: int, length: int, size_bytes: int) -> str:
    if prefix < 8:
        return f"{size_bytes} bytes are no safetensors file"
    if length > MAX_HEADER_BYTES:
        return f"a header of {length} bytes is absurd: this is no safetensors file"
    return f"the file is truncated: it has {size_bytes} bytes, its header alone {length}"


class _DuplicateKey(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise _DuplicateKey(key)
        table[key] = value
    return table


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _entry(path: Path, name: str, fields: Any, data_start: int) -> Entry:
    """The checked entry of one tensor; its offsets may still lie outside the file or overlap others."""

    def fail(why: str) -> InputError:
        return InputError(f"{path}: tensor '{name}': {why}")

    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise fail("its header must have dtype, shape and data_offsets")
    dtype_name, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype_name, str):
        raise fail("dtype is not a string")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise fail(f"{shape} is not a shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise fail(f"data_offsets {offsets} are not two positions")
    begin, end = offsets
    if end < begin:
        raise fail(f"data_offsets {offsets} run backwards")
    dtype = _DTYPE_OF.get(dtype_name)
    if dtype is not None and math.prod(shape) * dtype.bits // 8 != end - begin:
        raise fail(f"{dtype}{shape} takes {math.prod(shape) * dtype.bits // 8} bytes, data_offsets give {end - begin}")
    return Entry(name, dtype_name, tuple(shape), data_start + begin, end - begin)


def _check_cover(path: Path, entries: list[Entry], data_start: int, size_bytes: int) -> None:
    """The tensors must cover the data exactly: in the file, no overlap, no gap."""
    end = data_start
    last = ""
    for entry in sorted(entries, key=lambda e: (e.offset, e.size_bytes)):
        if entry.offset + entry.size_bytes > size_bytes:
            raise InputError(
                f"{path}: tensor '{entry.name}' lies outside the file: it ends at byte "
                f"{entry.offset + entry.size_bytes} of {size_bytes}",
                "the file is truncated: fetch it again",
            )
        if entry.offset < end:
            raise InputError(f"{path}: tensor '{entry.name}' overlaps tensor '{last}'")
        if entry.offset > end:
            raise InputError(f"{path}: {entry.offset - end} bytes before tensor '{entry.name}' belong to no tensor")
        end, last = entry.offset + entry.size_bytes, entry.name
    if end != size_bytes:
        raise InputError(f"{path}: {size_bytes - end} bytes at the end belong to no tensor")


class SafetensorsWriter:
    """Writes tensors of known types, rows at a time and in any order across tensors.

        with SafetensorsWriter(path, {"w": type}) as file:
            file.write("w", rows)

    Writes to `path` itself: write to a temporary name and rename. Leaving the block with rows missing is an IRError.
    """

    def __init__(self, path: Path, types: Mapping[str, TensorType], metadata: Mapping[str, str] | None = None) -> None:
        self._path = path
        # Wide elements first, so that every tensor is aligned to its element.
        order = sorted(types, key=lambda name: -_plain(types[name]).bits)
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._at: dict[str, int] = {}
        self._end: dict[str, int] = {}
        self._dtype = {name: numpy_dtype(types[name].dtype) for name in order}
        offset = 0
        for name in order:
            shape = static_shape(types[name])
            size = math.prod(shape) * self._dtype[name].itemsize
            header[name] = {
                "dtype": _NAME_OF[_plain(types[name])],
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            self._at[name], self._end[name] = offset, offset + size
            offset += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self.size_bytes = self._start + offset
        self._prefix = len(text).to_bytes(8, "little") + text

    def __enter__(self) -> SafetensorsWriter:
        self._file = open(self._path, "wb")
        self._file.write(self._prefix)
        self._file.truncate(self.size_bytes)
        return self

    def write(self, name: str, rows: AnyArray) -> None:
        """Append rows to tensor `name`."""
        if rows.dtype != self._dtype[name]:
            raise IRError(f"{rows.dtype} rows were written to tensor '{name}' of {self._dtype[name]}")
        at = self._at[name]
        if at + rows.nbytes > self._end[name]:
            raise IRError(f"too many rows were written to tensor '{name}'")
        self._file.seek(self._start + at)
        self._file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        self._at[name] = at + rows.nbytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        missing = [name for name, at in self._at.items() if at != self._end[name]]
        if missing and kind is None:
            raise IRError(f"{self._path}: rows of '{missing[0]}' were not written")


def _plain(type: TensorType) -> DType:
    if not isinstance(type.element, DType):
        raise IRError(f"a safetensors file holds plain numbers, not a {type}: write its packed parts")
    return type.element
