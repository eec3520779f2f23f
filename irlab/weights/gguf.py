"""The GGUF format: a reader that trusts nothing and maps rows without loading tensors, and the recipe that uses it.

A file is a header (magic, version, counts), metadata (typed values by key), the names, shapes and places of tensors,
and their bytes, each aligned (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from ..encodings import Codes, GGMLEncoding, ggml
from ..encodings.ggml.equal import EQUAL, Equal
from ..errors import InputError
from ..types import DTYPES, TensorType, tensor
from .leaves import FileTensor
from .mapped import mapped
from .recipe import AnyArray, numpy_dtype, static_shape

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_MAX_DIMENSIONS: Final = 4
_MAX_ALIGNMENT: Final = 1 << 16
_ALIGNMENT: Final = 32
"""Of a file that does not say another."""

_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LEAST_PAIR, _LEAST_INFO, _LEAST_STRING = 13, 24, 8
"""Bytes that a pair of metadata, the place of a tensor and a string take at least: counts are held against them."""

Metadata: TypeAlias = "dict[str, Any]"
"""Values by key: numbers, booleans, strings, and tuples of one of these."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the file `path`: its GGML type, its shape, outermost axis first, and where its bytes are."""

    path: Path
    name: str
    type_name: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @cached_property
    def equal(self) -> Equal | None:
        """The encoding that has the very codes of the type, where there is one."""
        return next((equal for equal in EQUAL if equal.type_name == self.type_name), None)

    @property
    def type(self) -> TensorType:
        """Plain numbers, or codes: as an encoding that other formats have too, if there is one. Raises InputError for a
        type that irlab lacks."""
        if self.type_name in DTYPES:
            return tensor(DTYPES[self.type_name], self.shape)
        return tensor(self.equal.encoding if self.equal is not None else ggml(self.type_name), self.shape)


@dataclass(frozen=True)
class GGUFFile:
    """The checked header of a file. Holds no open file."""

    path: Path
    metadata: Metadata
    entries: Mapping[str, Entry]

    def entry(self, name: str) -> Entry:
        """The tensor called `name`. Raises InputError if it is missing."""
        if name not in self.entries:
            raise InputError(f"{self.path}: no tensor called '{name}'")
        return self.entries[name]

    def read(self, name: str, start: int, stop: int) -> AnyArray:
        """The bytes of rows [start:stop] of tensor `name`: u8[rows, bytes of a row]."""
        entry = self.entry(name)
        rows = entry.shape[0] if entry.shape else 1
        size = entry.size_bytes // max(1, rows)
        return mapped(entry.path, entry.offset + start * size, (stop - start) * size, name).reshape(stop - start, size)


@dataclass(frozen=True)
class FromGGUF(FileTensor, text_name="gguf"):
    """The tensor `name` of a GGUF file, which must be of type `of`: plain numbers or codes. Rows are mapped, not
    loaded; IR text names files relative to itself."""

    def read_rows(self, start: int, stop: int) -> AnyArray:
        """The bytes of rows: u8[rows, bytes of a row]."""
        file = open_gguf(self.path)
        self.require_type(file.entry(self.name).type)
        return file.read(self.name, start, stop)

    def rows(self, start: int, stop: int) -> AnyArray:
        if self.of.encoding is not None:
            return self.of.encoding.decode(self.codes(start, stop))
        found = self.kept_rows(start, stop)
        return found.view(numpy_dtype(self.of.dtype)).reshape(stop - start, *static_shape(self.of)[1:])

    def codes(self, start: int, stop: int) -> Codes:
        found, shape = self.kept_rows(start, stop), static_shape(self.of)
        entry = open_gguf(self.path).entry(self.name)
        encoding = ggml(entry.type_name)
        assert isinstance(encoding, GGMLEncoding)
        blocks = {"blocks": found.reshape(stop - start, *shape[1:-1], encoding.row_bytes(shape[-1]))}
        if entry.equal is not None:
            return entry.equal.from_blocks(blocks)
        return encoding.unpack(blocks, shape[-1])


def open_gguf(path: Path) -> GGUFFile:
    """Read and check the header of `path`; the result is kept while the file does not change. Raises InputError, naming
    the file and the key or tensor, for anything that is not a GGUF file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return _open(Path(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _open(path: Path, size_bytes: int, _modified_ns: int) -> GGUFFile:
    if size_bytes < 24:
        raise InputError(f"{path}: {size_bytes} bytes are no GGUF file")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data, size_bytes).file()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


class _Reader:
    """Reads a header from front to back; every count is held against the bytes that are left before it is believed."""

    def __init__(self, path: Path, data: mmap.mmap, size_bytes: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size_bytes, 0

    def fail(self, why: str) -> InputError:
        return InputError(f"{self.path}: {why}")

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise self.fail(f"the file is truncated: it ends at byte {self.size}, within its header")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, least: int, what: str) -> int:
        """How many things follow that take at least `least` bytes each."""
        found: int = self.number("<Q")
        if found * least > self.size - self.at:
            raise self.fail(f"it says that it holds {found} {what}, for which it is too short")
        return found

    def text(self, what: str) -> str:
        try:
            return self.take(self.count(1, f"bytes of {what}")).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def file(self) -> GGUFFile:
        if self.take(4) != MAGIC:
            raise self.fail("this is no GGUF file")
        version = self.number("<I")
        if version not in _VERSIONS:
            big = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            raise self.fail("it is a big-endian file" if big else f"GGUF version {version} is not known")
        tensors, pairs = self.count(_LEAST_INFO, "tensors"), self.count(_LEAST_PAIR, "metadata values")
        metadata: Metadata = {}
        for _ in range(pairs):
            key = self.text("a key")
            if key in metadata:
                raise self.fail(f"the key '{key}' stands twice")
            metadata[key] = self.value(key, self.number("<I"))
        infos = [self.info() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self.fail(f"general.alignment is {alignment!r}, which is no power of two")
        start = -(-self.at // alignment) * alignment
        entries = {}
        for entry in infos:
            if entry.name in entries:
                raise self.fail(f"two tensors are called '{entry.name}'")
            if entry.offset % alignment:
                raise self.fail(f"tensor '{entry.name}' is not aligned to {alignment} bytes")
            if start + entry.offset + entry.size_bytes > self.size:
                raise self.fail(f"tensor '{entry.name}' lies outside the file: the file is truncated")
            entries[entry.name] = replace(entry, offset=start + entry.offset)
        self.no_overlap(entries)
        return GGUFFile(self.path, metadata, entries)

    def value(self, key: str, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text(f"the value of {key}")
        if kind != _ARRAY:
            raise self.fail(f"the value of {key} is of the unknown type {kind}")
        of = self.number("<I")
        if of == _STRING:
            return tuple(self.text(f"a value of {key}") for _ in range(self.count(_LEAST_STRING, f"values of {key}")))
        if of not in _SCALARS:
            raise self.fail(f"the values of {key} are of the type {of}, which no array has")
        form = np.dtype(_SCALARS[of])
        return tuple(
            np.frombuffer(self.take(self.count(form.itemsize, f"values of {key}") * form.itemsize), form).tolist()
        )

    def info(self) -> Entry:
        """The place of a tensor, relative to the first."""
        import gguf

        name = self.text("the name of a tensor")
        rank = self.number("<I")
        if rank > _MAX_DIMENSIONS:
            raise self.fail(f"tensor '{name}' has {rank} dimensions")
        shape = tuple(self.number("<Q") for _ in range(rank))[::-1]
        kind, offset = self.number("<I"), self.number("<Q")
        try:
            known = gguf.GGMLQuantizationType(kind)
            block, block_bytes = gguf.GGML_QUANT_SIZES[known]
        except (ValueError, KeyError):
            raise self.fail(f"tensor '{name}' is of the unknown GGML type {kind}") from None
        columns = shape[-1] if shape else 1
        if columns % block:
            raise self.fail(f"tensor '{name}': rows of {columns} numbers are not whole blocks of {known.name}")
        return Entry(self.path, name, known.name.lower(), shape, offset, math.prod(shape) // block * block_bytes)

    def no_overlap(self, entries: Mapping[str, Entry]) -> None:
        end, last = 0, ""
        for entry in sorted(entries.values(), key=lambda e: (e.offset, e.size_bytes)):
            if entry.offset < end:
                raise self.fail(f"tensor '{entry.name}' overlaps tensor '{last}'")
            end, last = entry.offset + entry.size_bytes, entry.name
