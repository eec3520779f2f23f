"""How is a weight laid out in the external data file? As blocks of bytes, streamed from its recipe.

A stored tensor is seen as `rows` of `row_bytes`; a block fills a range of rows, or a range of bytes of every row, so
that a transposed matrix is written without being held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from irlab.errors import LegalityError
from irlab.types import DType, bf16, bool_, f8e4m3, f8e5m2, f16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64
from irlab.weights import Recipe, static_shape

if TYPE_CHECKING:
    import numpy as np

# onnx.TensorProto.DataType, spelled out so that planning needs no onnx.
ONNX_TYPE: Final[dict[DType, int]] = {
    f32: 1, u8: 2, i8: 3, u16: 4, i16: 5, i32: 6, i64: 7, bool_: 9, f16: 10, f64: 11, u32: 12, u64: 13, bf16: 16,
    f8e4m3: 17, f8e5m2: 19,
}  # fmt: skip
UINT4: Final = 21
INT4: Final = 22


@dataclass(frozen=True)
class Block:
    """Bytes for `data.shape[0]` rows from `row` on, `data.shape[1]` bytes each, from byte `column` of the row on."""

    row: int
    column: int
    data: np.ndarray


@dataclass(frozen=True)
class Stored:
    """A tensor to store: its name, ONNX element type and shape, and the blocks of bytes that fill it."""

    name: str
    onnx_type: int
    shape: tuple[int, ...]
    rows: int
    row_bytes: int
    blocks: Callable[[], Iterator[Block]]
    same_bytes_as: str = ""
    """The name of another stored tensor that holds these very bytes, under another shape."""

    @property
    def size_bytes(self) -> int:
        return self.rows * self.row_bytes


def as_bytes(rows: np.ndarray) -> np.ndarray:
    """An array of any dtype as u8[rows, bytes of a row], in little-endian order."""
    import numpy as np

    flat = np.ascontiguousarray(rows).reshape(rows.shape[0] if rows.ndim else 1, -1)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    return flat.view(np.uint8)


def plain(name: str, recipe: Recipe, dtype: DType | None = None) -> Stored:
    """The numbers of `recipe` in row-major order, as `dtype` (its own if None)."""
    from irlab.weights import numpy_dtype

    dtype = dtype or recipe.type.dtype
    shape = static_shape(recipe.type)
    target = numpy_dtype(dtype)

    def blocks() -> Iterator[Block]:
        for start, stop in recipe.chunks():
            yield Block(start, 0, as_bytes(recipe.rows(start, stop).astype(target, copy=False)))

    row_bytes = math.prod(shape[1:]) * dtype.bits // 8
    return Stored(name, ONNX_TYPE[dtype], shape, shape[0] if shape else 1, row_bytes, blocks)


def transposed(name: str, recipe: Recipe, dtype: DType | None = None) -> Stored:
    """A matrix [n, k] stored as [k, n], the layout that MatMul takes."""
    from irlab.weights import numpy_dtype

    dtype = dtype or recipe.type.dtype
    n, k = matrix_shape(recipe)
    item = dtype.bits // 8
    target = numpy_dtype(dtype)

    def blocks() -> Iterator[Block]:
        for start, stop in recipe.chunks():
            yield Block(0, start * item, as_bytes(recipe.rows(start, stop).astype(target, copy=False).T))

    return Stored(name, ONNX_TYPE[dtype], (k, n), k, n * item, blocks)


def array(name: str, values: np.ndarray, onnx_type: int | None = None) -> Stored:
    """A small array that is already there."""
    from irlab.types import DTYPES
    from irlab.weights import numpy_dtype

    if onnx_type is None:
        onnx_type = next(ONNX_TYPE[d] for d in DTYPES.values() if d in ONNX_TYPE and numpy_dtype(d) == values.dtype)
    data = as_bytes(values.reshape(1, -1))
    return Stored(name, onnx_type, values.shape, 1, data.shape[1], lambda: iter([Block(0, 0, data)]))


def matrix_shape(recipe: Recipe) -> tuple[int, int]:
    """The sizes of a weight matrix [out, in]."""
    shape = static_shape(recipe.type)
    if len(shape) != 2:
        raise LegalityError(f"a weight matrix has the shape {list(shape)}, not two dimensions")
    return shape[0], shape[1]
