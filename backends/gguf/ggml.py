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
from irlab.weights import as_f16, as_f32, check_finite

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BF16 = np.dtype(ml_dtypes.bfloat16)

# Elements encoded at a time by one thread: f32 input and scratch stay near a core.
_CHUNK_ELEMENTS = 1 << 18

# A thread is worth starting only above this many elements.
_ELEMENTS_PER_THREAD = 1 << 19

# What gguf-py encodes by itself.
_NUMPY_TYPES = frozenset(["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"])
_FLOAT_TYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": BF16}
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

    values:  floats[..., columns]; a memory map is read chunk by chunk. Integers only into their own type.
    imatrix: f32[columns], the importance of each column (a mean of squared activations), or None.
    jobs:    threads.
    name:    names the tensor in errors.

    Returns u8[..., row_bytes], a view of `values` where they are of this type already. Raises InputError for NaN or
    infinite values, for rows that are not whole blocks, and for a type or an imatrix that needs a compiled library
    where none is installed.
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
    rows = values.reshape(-1, columns)
    stored = values.dtype == _FLOAT_TYPES.get(target.name)
    encode: Encoder = _keep if stored else _encoder(target, columns, imatrix, name)
    out: Bytes = np.ascontiguousarray(rows).view(np.uint8) if stored else np.empty((len(rows), row_bytes), np.uint8)

    def work(start: int, stop: int) -> None:
        chunk = rows[start:stop]
        check_finite(name, chunk, start)
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


def _keep(rows: Array, out: Bytes) -> None:
    """The encoder of numbers that are of their type already: `out` is a view of them."""


def require_encodable(type: str | GGMLType, columns: int, imatrix: Floats | None, name: str) -> None:
    """Raise InputError where `quantize` could not encode rows of `columns` numbers."""
    _encoder(ggml_type(type), columns, imatrix, name)


def _encoder(target: GGMLType, columns: int, imatrix: Floats | None, name: str) -> Encoder:
    """A function that writes rows [n, columns] of floats into u8[n, row_bytes]."""
    library = _library()
    if not target.quantized:
        return _float_encoder(target.name, name, library)
    if library is None:
        if needs_library(target) or imatrix is not None:
            what = f"{target} with column importances" if imatrix is not None else str(target)
            raise InputError(f"{name}: {what} needs a compiled ggml, and none is installed", "pip install xllamacpp")
        kind = gguf.GGMLQuantizationType(target.id)

        def encode_in_numpy(rows: Array, out: Bytes) -> None:
            out[:] = gguf.quantize(_contiguous_f32(rows), kind)

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
        floats = _contiguous_f32(rows)
        importances = None if weights is None else weights.ctypes.data
        written = library.ggml_quantize_chunk(
            target.id, floats.ctypes.data, out.ctypes.data, 0, len(floats), columns, importances
        )
        if written != out.nbytes:
            raise InputError(f"{name}: ggml wrote {written} bytes of {target} where {out.nbytes} were due")

    return encode


def _float_encoder(target: str, name: str, library: ctypes.CDLL | None) -> Encoder:
    def encode_f32(rows: Array, out: Bytes) -> None:
        out.view(np.float32)[:] = as_f32(rows)

    def encode_bf16(rows: Array, out: Bytes) -> None:
        out.view(BF16)[:] = rows

    def encode_f16(rows: Array, out: Bytes) -> None:
        try:
            out.view(np.float16)[:] = as_f16(rows)
        except OverflowError as error:
            raise InputError(f"{name}: {error}", "store this model as bf16 or f32") from None

    def encode_f16_in_c(rows: Array, out: Bytes) -> None:
        floats = _contiguous_f32(rows)
        convert(floats.ctypes.data, out.ctypes.data, floats.size)
        if int((out.view(np.uint16) << 1).max(initial=0)) >= 0xF800:  # an infinity
            encode_f16(rows, out)  # raises

    convert: Any = getattr(library, "ggml_cpu_fp32_to_fp16", None)
    return {"F32": encode_f32, "BF16": encode_bf16, "F16": encode_f16_in_c if convert else encode_f16}[target]


def _contiguous_f32(rows: Array) -> Floats:
    return as_f32(np.ascontiguousarray(rows))


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
    if hasattr(library, "ggml_cpu_fp32_to_fp16"):
        library.ggml_cpu_fp32_to_fp16.restype = None
        library.ggml_cpu_fp32_to_fp16.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    return library
