"""How does each GGML type store numbers, and how are rows of floats turned into it and back?

Encoding goes through the compiled `ggml_quantize_chunk` of an installed wheel where there is one (see `library`), so
the bytes are llama.cpp's own; the types that gguf-py can encode in numpy (to the same bytes) need no library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt

from irlab.backends.gguf.library import ggml_library
from irlab.errors import InputError

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BF16 = np.dtype(ml_dtypes.bfloat16)

# Elements encoded at a time by one thread: f32 input and scratch stay inside a core's cache.
_CHUNK_ELEMENTS = 1 << 17

# A thread is worth starting only above this many elements.
_ELEMENTS_PER_THREAD = 1 << 19

# What gguf-py encodes by itself.
_NUMPY_TYPES = frozenset(["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"])
_INTEGER_TYPES = {np.dtype(f"i{size}"): f"I{8 * size}" for size in (1, 2, 4, 8)}


@dataclass(frozen=True)
class GGMLType:
    """One GGML storage type. A row is cut into blocks of `block_size` numbers, `block_bytes` bytes each."""

    name: str
    id: int
    block_size: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size

    @property
    def quantized(self) -> bool:
        return self.block_size > 1

    def fits(self, columns: int) -> bool:
        """Whether rows of `columns` numbers are whole blocks."""
        return columns % self.block_size == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` numbers; InputError if the row is not whole blocks."""
        if not self.fits(columns):
            raise InputError(
                f"rows of {columns} numbers are not whole blocks of {self.name} ({self.block_size} numbers)",
                "choose a type with smaller blocks for this tensor",
            )
        return columns // self.block_size * self.block_bytes

    def __str__(self) -> str:
        return self.name


@cache
def ggml_types() -> dict[str, GGMLType]:
    """Every GGML type that gguf-py knows, by upper-case name."""
    return {
        kind.name: GGMLType(kind.name, int(kind), *gguf.GGML_QUANT_SIZES[kind])
        for kind in gguf.GGMLQuantizationType
        if kind in gguf.GGML_QUANT_SIZES
    }


def ggml_type(name: str | GGMLType) -> GGMLType:
    """The type called `name`, in any case. Raises InputError for a name that does not exist."""
    if isinstance(name, GGMLType):
        return name
    try:
        return ggml_types()[name.upper()]
    except KeyError:
        raise InputError(f"unknown GGML type '{name}'", "known: " + " ".join(sorted(ggml_types()))) from None


def quantize(
    values: Array, type: str | GGMLType, imatrix: Floats | None = None, *, jobs: int = 1, name: str = "tensor"
) -> Bytes:
    """Encodes `values` row by row.

    values:  f32, f16 or bf16 [..., columns]; a memory map is read chunk by chunk. Integers only into their own type.
    imatrix: f32[columns], the importance of each column (a mean of squared activations), or None.
    jobs:    threads.
    name:    names the tensor in errors.

    Returns u8[..., row_bytes]. Raises InputError for NaN or infinite values, for rows that are not whole blocks, and
    for a type or an imatrix that needs a compiled library where none is installed.
    """
    target = ggml_type(type)
    columns = values.shape[-1] if values.ndim else 1
    try:
        row_bytes = target.row_bytes(columns)
    except InputError as error:
        raise InputError(f"{name}: {error.message}", error.hint) from None
    if values.dtype in _INTEGER_TYPES:
        if _INTEGER_TYPES[values.dtype] != target.name:
            raise InputError(f"{name}: {values.dtype} numbers cannot be stored as {target}")
        return np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape[:-1], row_bytes)
    encode = _encoder(target, columns, imatrix, name)
    rows = values.reshape(-1, columns)
    out = np.empty((len(rows), row_bytes), np.uint8)

    def work(start: int, stop: int) -> None:
        chunk = rows[start:stop]
        _require_finite(chunk, name, start)
        encode(chunk, out[start:stop])

    spans = list(_spans(len(rows), max(1, _CHUNK_ELEMENTS // max(1, columns))))
    threads = min(jobs, len(spans), max(1, rows.size // _ELEMENTS_PER_THREAD))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda span: work(*span), spans):
                pass
    else:
        for span in spans:
            work(*span)
    return out.reshape(*values.shape[:-1], row_bytes)


def dequantize(data: Bytes, type: str | GGMLType) -> Floats:
    """Decodes u8[..., row_bytes] to f32[..., columns], by gguf-py (a reader that is not ours)."""
    source = ggml_type(type)
    return np.asarray(gguf.dequantize(data, gguf.GGMLQuantizationType(source.id)), np.float32)


def requires_imatrix(type: str | GGMLType) -> bool:
    """Whether the type cannot be encoded without column importances (IQ1_S, IQ2_XXS and IQ2_XS)."""
    library = _library()
    return library is not None and bool(library.ggml_quantize_requires_imatrix(ggml_type(type).id))


def needs_library(type: str | GGMLType) -> bool:
    """Whether only a compiled ggml can encode this type (the K and IQ types)."""
    return ggml_type(type).name not in _NUMPY_TYPES


Encoder = Callable[[Array, Bytes], None]


def _encoder(target: GGMLType, columns: int, imatrix: Floats | None, name: str) -> Encoder:
    """A function that writes rows [n, columns] of floats into u8[n, row_bytes]."""
    if not target.quantized:
        return _float_encoder(target.name, name)
    library = _library()
    if library is None:
        if needs_library(target) or imatrix is not None:
            what = f"{target} with column importances" if imatrix is not None else str(target)
            raise InputError(f"{name}: {what} needs a compiled ggml, and none is installed", "pip install xllamacpp")
        kind = gguf.GGMLQuantizationType(target.id)

        def encode_in_numpy(rows: Array, out: Bytes) -> None:
            out[:] = gguf.quantize(_to_f32(rows), kind)

        return encode_in_numpy
    if requires_imatrix(target) and imatrix is None:
        raise InputError(f"{name}: {target} cannot be encoded without column importances", "give calibration text")
    weights = None
    if imatrix is not None:
        weights = np.ascontiguousarray(imatrix, np.float32)
        if weights.shape != (columns,):
            raise InputError(f"{name}: the importances have shape {list(weights.shape)}, the rows {columns} columns")
        if not np.isfinite(weights).all():
            raise InputError(f"{name}: the column importances hold NaN or infinite values")

    def encode(rows: Array, out: Bytes) -> None:
        floats = _to_f32(rows)
        importances = None if weights is None else weights.ctypes.data
        written = library.ggml_quantize_chunk(
            target.id, floats.ctypes.data, out.ctypes.data, 0, len(floats), columns, importances
        )
        if written != out.nbytes:
            raise InputError(f"{name}: ggml wrote {written} bytes of {target} where {out.nbytes} were due")

    return encode


def _float_encoder(target: str, name: str) -> Encoder:
    def encode_f32(rows: Array, out: Bytes) -> None:
        out.view(np.float32)[:] = rows

    def encode_bf16(rows: Array, out: Bytes) -> None:
        out.view(BF16)[:] = rows

    def encode_f16(rows: Array, out: Bytes) -> None:
        halves = out.view(np.float16)
        if rows.dtype == BF16:
            # numpy converts through a scalar loop; gathering from all 65,536 answers is three times faster.
            np.take(_f16_of_bf16(), np.ascontiguousarray(rows).view(np.uint16), out=halves, mode="wrap")
        else:
            with np.errstate(over="ignore"):
                halves[:] = rows
        if np.isinf(halves).any():
            raise InputError(f"{name}: a value exceeds 65504, the largest of F16", "store this model as bf16 or f32")

    return {"F32": encode_f32, "BF16": encode_bf16, "F16": encode_f16}[target]


@cache
def _f16_of_bf16() -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore", invalid="ignore"):
        patterns: Array = np.arange(1 << 16, dtype=np.uint16).view(BF16)
        return patterns.astype(np.float32).astype(np.float16)


def _to_f32(rows: Array) -> Floats:
    return np.ascontiguousarray(rows, dtype=np.float32)


def _require_finite(rows: Array, name: str, first_row: int) -> None:
    if rows.dtype == BF16:
        # All exponent bits set: compared as integers, several times faster than through ml_dtypes.
        bits = np.ascontiguousarray(rows).view(np.uint16)
        bad = bits.size > 0 and int((bits << 1).max()) >= 0xFF00
    else:
        bad = not np.isfinite(rows).all()
    if bad:
        row, column = np.argwhere(~np.isfinite(rows.astype(np.float32)))[0]
        raise InputError(f"{name}: NaN or infinite value at row {first_row + row}, column {column}")


def _spans(count: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, step):
        yield start, min(start + step, count)


@cache
def _library() -> ctypes.CDLL | None:
    path = ggml_library()
    if path is None:
        return None
    # RTLD_LOCAL: another copy of ggml in this process (a runtime under test) must keep its own symbols.
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    return library
