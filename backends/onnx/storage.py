"""How is a weight laid out in the external data file? As blocks of bytes, made from rows of its recipe.

A stored tensor is seen as `rows` of `row_bytes`; a block fills a range of rows, or a range of bytes of every row, so
that a transposed matrix is written without being held. Tensors made from one weight (codes, scales) name it as their
source: its rows are read, or encoded, once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from irlab.errors import LegalityError
from irlab.types import (
    DType,
    TensorType,
    bf16,
    bool_,
    f8e4m3,
    f8e5m2,
    f16,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)
from irlab.weights import (
    Array,
    Chunk,
    Reading,
    Recipe,
    WeightSymbol,
    check_finite,
    finite_codes,
    finite_rows,
    numpy_dtype,
    static_shape,
)

if TYPE_CHECKING:
    import numpy as np

    from irlab.encodings import Codes

# onnx.TensorProto.DataType, spelled out so that planning needs no onnx.
ONNX_TYPE: Final[dict[DType, int]] = {
    f32: 1, u8: 2, i8: 3, u16: 4, i16: 5, i32: 6, i64: 7, bool_: 9, f16: 10, f64: 11, u32: 12, u64: 13, bf16: 16,
    f8e4m3: 17, f8e5m2: 19,
}  # fmt: skip
INT8: Final = ONNX_TYPE[i8]
UINT8: Final = ONNX_TYPE[u8]
UINT4: Final = 21
INT4: Final = 22

Place: TypeAlias = "Callable[[int, Any], Block]"
"""(first row, what was read of the source from there on) -> the block that it fills: plain rows, or `Codes`."""


@dataclass(frozen=True)
class Block:
    """Bytes u8[rows, width] for the rows from `row` on, from byte `column` of each row on."""

    row: int
    column: int
    data: np.ndarray


@dataclass(frozen=True)
class Stored:
    """A tensor to store: its name, ONNX element type and shape, and how rows of `source` fill it."""

    name: str
    onnx_type: int
    shape: tuple[int, ...]
    rows: int
    row_bytes: int
    source: WeightSymbol
    place: Place
    same_bytes_as: str = ""
    """The name of another stored tensor that holds these very bytes, under another shape."""

    @property
    def size_bytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True, eq=False)
class Constant(Array, text_name=""):
    """Numbers that the graph itself states: unlike those of a checkpoint they may be infinite, as a mask's are."""


@dataclass(frozen=True)
class PairedRows(Recipe, text_name=""):
    """`source`, read in chunks of an even number of rows, so that rows of nibbles turned to columns share no byte."""

    source: Recipe

    @property
    def type(self) -> TensorType:
        return self.source.type

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.source.rows(start, stop)

    def codes(self, start: int, stop: int) -> Codes:
        return self.source.codes(start, stop)

    def chunks(self, max_bytes: int = 32 << 20) -> Iterator[tuple[int, int]]:
        first = next(iter(self.source.chunks(max_bytes)), (0, 1))
        step = first[1] if first[1] == self.row_count else max(2, first[1] // 2 * 2)
        for start in range(0, self.row_count, step):
            yield start, min(self.row_count, start + step)


def reading_of_blocks(tensors: Sequence[Stored], write: Callable[[Stored, Block], None]) -> Reading:
    """What fills `tensors` block by block, by `write`: each source is read once for all that is made from it."""
    readers: dict[WeightSymbol, list[Stored]] = {}
    for stored in tensors:
        readers.setdefault(stored.source, []).append(stored)
    paired = {WeightSymbol(s.name, PairedRows(s.recipe)): found for s, found in readers.items()}

    def work(symbol: WeightSymbol, start: int, stop: int) -> list[tuple[Stored, Block]]:
        rows = _read(symbol, start, stop)
        return [(stored, stored.place(start, rows)) for stored in paired[symbol]]

    def take(chunk: Chunk[list[tuple[Stored, Block]]]) -> None:
        for stored, block in chunk.value:
            write(stored, block)

    return Reading(list(paired), work, take)


def all_blocks(stored: Stored) -> Iterator[Block]:
    """The blocks of one small tensor."""
    for start, stop in stored.source.recipe.chunks():
        yield stored.place(start, _read(stored.source, start, stop))


def _read(symbol: WeightSymbol, start: int, stop: int) -> np.ndarray | Codes:
    if isinstance(symbol.recipe, Constant):
        return symbol.recipe.rows(start, stop)
    if symbol.type.encoding is None:
        return finite_rows(symbol, start, stop)
    codes: Mapping[str, np.ndarray] = finite_codes(symbol, start, stop)
    if "scales" in codes:
        check_finite(symbol.name, codes["scales"], start)
    return codes


def as_bytes(rows: np.ndarray) -> np.ndarray:
    """An array of any dtype as u8[rows, bytes of a row], in little-endian order."""
    import numpy as np

    flat = np.ascontiguousarray(rows).reshape(rows.shape[0] if rows.ndim else 1, -1)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    return flat.view(np.uint8)


def plain(name: str, source: WeightSymbol) -> Stored:
    """The numbers of a weight in row-major order."""
    shape, dtype = static_shape(source.type), source.type.dtype
    row_bytes = math.prod(shape[1:]) * dtype.bits // 8
    rows = shape[0] if shape else 1
    return Stored(name, ONNX_TYPE[dtype], shape, rows, row_bytes, source, lambda row, x: Block(row, 0, as_bytes(x)))


def transposed(name: str, source: WeightSymbol) -> Stored:
    """A matrix [n, k] stored as [k, n], the layout that MatMul takes."""
    n, k = matrix_shape(source.recipe)
    dtype = source.type.dtype
    item = dtype.bits // 8
    return Stored(
        name, ONNX_TYPE[dtype], (k, n), k, n * item, source, lambda row, x: Block(0, row * item, as_bytes(x.T))
    )


def array(name: str, values: np.ndarray) -> Stored:
    """A small array that is already there."""
    from irlab.types import DTYPES, tensor

    dtype = next(d for d in DTYPES.values() if d in ONNX_TYPE and numpy_dtype(d) == values.dtype)
    return plain(name, WeightSymbol(name, Constant(tensor(dtype, values.shape), values)))


def matrix_shape(recipe: Recipe) -> tuple[int, int]:
    """The sizes of a weight matrix [out, in]."""
    shape = static_shape(recipe.type)
    if len(shape) != 2:
        raise LegalityError(f"a weight matrix has the shape {list(shape)}, not two dimensions")
    return shape[0], shape[1]
