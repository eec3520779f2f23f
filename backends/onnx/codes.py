"""How do encoded weights stand in ONNX? The same codes, repacked for the op that decodes them.

IntegerEncoding gives i8 codes q (or u8 with zero points z) of [rows, columns] and a scale for each group of columns.
ONNX stores two 4-bit codes a byte, low half first. Symmetric codes are stored as INT4 where an op takes signed numbers,
else as q + 8 (4 bits) or q + 128 (8 bits), which is what MatMulNBits takes off again without a zero point operand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from irlab.backends.onnx.storage import INT4, INT8, ONNX_TYPE, UINT4, UINT8, Block, Stored, as_bytes, matrix_shape
from irlab.encodings import Codes, IntegerEncoding, bit_stream, stored_scales
from irlab.errors import LegalityError
from irlab.ir import Value, Weight
from irlab.ops import nn
from irlab.types import DType, f32, u8
from irlab.weights import Reshape, WeightSymbol, numpy_dtype, static_shape

if TYPE_CHECKING:
    import numpy as np

    from irlab.backends.onnx.emitter import Emitter


BLOCKS: Final = (16, 32, 64, 128, 256)
"""Block sizes of MatMulNBits and GatherBlockQuantized."""


def integer_encoding(symbol: WeightSymbol) -> IntegerEncoding:
    """The encoding of a weight as `forms.apply` leaves it: integers of 2, 4 or 8 bits, which ONNX's ops decode."""
    encoding = symbol.type.encoding
    if not isinstance(encoding, IntegerEncoding) or encoding.bits not in (2, 4, 8):
        raise LegalityError(
            f"weight '{symbol.name}' is encoded as {encoding}, which ONNX cannot hold",
            "use quantize{scheme=int4} or int8",
        )
    return encoding


def blocked(weight: Value) -> WeightSymbol | None:
    """The weight behind `weight`, if the block-quantised ops hold its encoding."""
    symbol = weight.op.symbol if isinstance(weight.op, Weight) else None
    encoding = symbol.type.encoding if symbol is not None else None
    if isinstance(encoding, IntegerEncoding) and encoding.group in BLOCKS:
        return symbol
    return None


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """u8[rows, columns] of 4-bit codes -> u8[rows, columns / 2], the even column in the low half."""
    import numpy as np

    if codes.shape[1] % 2:
        codes = np.pad(codes, ((0, 0), (0, 1)))
    low, high = codes[:, 0::2] & 15, codes[:, 1::2] & 15
    return low | (high << 4)


def _biased(encoding: IntegerEncoding, codes: np.ndarray) -> np.ndarray:
    """Codes as unsigned numbers: symmetric ones moved up by half the range."""
    import numpy as np

    if not encoding.symmetric:
        return codes.astype(np.uint8)
    return (codes.astype(np.int16) + (1 << (encoding.bits - 1))).astype(np.uint8)


@dataclass(frozen=True)
class Part:
    """One stored tensor made from the codes of a weight, row by row: what it holds and how it is made."""

    label: str
    onnx_type: int
    shape: tuple[int, ...]
    convert: Callable[[Codes], np.ndarray]
    """Codes of some rows -> the tensor's rows as an array of whole bytes."""


def _store(e: Emitter, symbol: WeightSymbol, part: Part, row_bytes: int) -> str:
    def make() -> Stored:
        name, rows = e.unique(f"{symbol.name}.{part.label}"), matrix_shape(symbol.recipe)[0]

        def place(row: int, codes: Codes) -> Block:
            return Block(row, 0, as_bytes(part.convert(codes)))

        return Stored(name, part.onnx_type, part.shape, rows, row_bytes, symbol, place)

    return e.once((symbol.name, symbol.type.encoding, part.label), make)


def _store_transposed(e: Emitter, symbol: WeightSymbol, part: Part, row_bytes: int, item_bits: int) -> str:
    """As `_store`, but `convert` gives the transposed block: rows of the matrix become columns of the tensor."""

    def make() -> Stored:
        name = e.unique(f"{symbol.name}.{part.label}")

        def place(row: int, codes: Codes) -> Block:
            return Block(0, row * item_bits // 8, as_bytes(part.convert(codes)))

        return Stored(name, part.onnx_type, part.shape, part.shape[0], row_bytes, symbol, place)

    return e.once((symbol.name, symbol.type.encoding, part.label), make)


def _scales_as(dtype: DType) -> Callable[[Codes], np.ndarray]:
    target = numpy_dtype(dtype)
    return lambda parts: stored_scales.load(parts).astype(target)


def _nibbles_or_bytes(bits: int, array: np.ndarray) -> np.ndarray:
    if bits == 2:
        return bit_stream.pack(array, 2)
    return pack_nibbles(array) if bits == 4 else array


def nbits(e: Emitter, symbol: WeightSymbol, dtype: DType) -> tuple[str, str, str]:
    """Codes, scales in `dtype` and zero points ("" where symmetric) as MatMulNBits takes them: u8[rows, groups, bytes
    of a group], [rows, groups], u8[rows, bytes of the zeros of a row]."""
    encoding = integer_encoding(symbol)
    rows, columns = matrix_shape(symbol.recipe)
    groups, bits = encoding.groups(columns), encoding.bits
    row_bytes = columns * bits // 8
    shape = (rows, groups, row_bytes // groups)
    codes = Part("codes", UINT8, shape, lambda parts: _nibbles_or_bytes(bits, _biased(encoding, parts["codes"])))
    zeros = ""
    if not encoding.symmetric:
        zero_bytes = -(-groups * bits // 8)
        part = Part("zeros", UINT8, (rows, zero_bytes), lambda parts: _nibbles_or_bytes(bits, parts["zeros"]))
        zeros = _store(e, symbol, part, zero_bytes)
    return _store(e, symbol, codes, row_bytes), _row_scales(e, symbol, dtype), zeros


def stacked(e: Emitter, symbol: WeightSymbol, dtype: DType) -> tuple[str, str, str]:
    """As `nbits` for a stack of matrices [experts, rows, columns], as QMoE takes it: u8[experts, rows, bytes of a row],
    scales [experts, rows, groups] and zero points u8[experts, rows, bytes of the zeros of a row]."""
    count, rows, columns = static_shape(symbol.type)
    names = nbits(e, WeightSymbol(symbol.name, Reshape(symbol.recipe, (count * rows, columns))), dtype)
    for name in filter(None, names):
        flat = e.tensors[name]
        width = flat.row_bytes if flat.onnx_type == UINT8 else flat.shape[-1]
        e.tensors[name] = replace(flat, shape=(count, rows, width))
    return names


def _row_scales(e: Emitter, symbol: WeightSymbol, dtype: DType) -> str:
    rows, columns = matrix_shape(symbol.recipe)
    groups = integer_encoding(symbol).groups(columns)
    part = Part(f"scales.{dtype}", ONNX_TYPE[dtype], (rows, groups), _scales_as(dtype))
    return _store(e, symbol, part, groups * dtype.bits // 8)


def nbits_rows(e: Emitter, symbol: WeightSymbol, dtype: DType) -> tuple[str, str, str]:
    """As `nbits`, with the codes seen as u8[rows, bytes of a row]: the form that GatherBlockQuantized takes. The bytes
    are those of `nbits`, stored once."""
    codes, scales, zeros = nbits(e, symbol, dtype)
    same = e.tensors[codes]
    flat = (same.rows, same.row_bytes)
    label = f"{symbol.name}.code_rows"
    key = (symbol.name, symbol.type.encoding, "rows")
    return e.once(key, lambda: replace(same, name=e.unique(label), shape=flat, same_bytes_as=codes)), scales, zeros


def per_column(e: Emitter, symbol: WeightSymbol) -> tuple[str, str]:
    """An 8-bit weight with one scale a row, as i8[columns, rows] and f32[rows]: what MatMulInteger takes."""
    encoding = integer_encoding(symbol)
    rows, columns = matrix_shape(symbol.recipe)
    if encoding.bits != 8 or encoding.groups(columns) != 1 or not encoding.symmetric:
        raise LegalityError(f"weight '{symbol.name}' is {encoding}, not 8 bits with one scale a row")
    codes = Part("int8.transposed", INT8, (columns, rows), lambda parts: parts["codes"].T)
    scales = Part("row_scales", ONNX_TYPE[f32], (rows,), _scales_as(f32))
    return _store_transposed(e, symbol, codes, rows, 8), _store(e, symbol, scales, 4)


def _code_type(encoding: IntegerEncoding) -> int:
    """INT4, UINT4, INT8 or UINT8: what DequantizeLinear reads."""
    if encoding.bits == 4:
        return INT4 if encoding.symmetric else UINT4
    return INT8 if encoding.symmetric else UINT8


def decoded(e: Emitter, symbol: WeightSymbol, dtype: DType = f32) -> str:
    """The numbers of an encoded weight in its own shape [rows, columns], in `dtype`, by DequantizeLinear."""
    encoding = integer_encoding(symbol)
    rows, columns = matrix_shape(symbol.recipe)
    groups, bits = encoding.groups(columns), encoding.bits
    if columns * bits % 8:
        raise LegalityError(f"weight '{symbol.name}' has rows of {columns} 4-bit codes, which do not fill bytes")
    kind = _code_type(encoding)
    codes = Part("int", kind, (rows, columns), lambda parts: _nibbles_or_bytes(bits, parts["codes"].view("u1")))
    inputs = [_store(e, symbol, codes, columns * bits // 8), _row_scales(e, symbol, dtype)]
    if not encoding.symmetric:
        if groups * bits % 8:
            raise LegalityError(f"weight '{symbol.name}' has {groups} zero points a row, which do not fill bytes")
        zeros = Part("zero_points", kind, (rows, groups), lambda parts: _nibbles_or_bytes(bits, parts["zeros"]))
        inputs.append(_store(e, symbol, zeros, groups * bits // 8))
    block = columns // groups
    return e.memo(
        ("decoded", symbol.name, dtype), lambda: e.node("DequantizeLinear", *inputs, axis=1, block_size=block)
    )


def decoded_transposed(e: Emitter, symbol: WeightSymbol, dtype: DType) -> str:
    """The numbers of an encoded weight [rows, columns] as [columns, rows] in `dtype`, decoded along axis 0: the one
    form of a blocked DequantizeLinear that ONNX Runtime fuses with the MatMul that reads it."""
    encoding = integer_encoding(symbol)
    rows, columns = matrix_shape(symbol.recipe)
    if rows * encoding.bits % 8:
        return e.memo(("transposed", symbol.name), lambda: e.node("Transpose", decoded(e, symbol), perm=(1, 0)))
    groups, bits, kind = encoding.groups(columns), encoding.bits, _code_type(encoding)

    def turned(array: np.ndarray) -> np.ndarray:
        return _nibbles_or_bytes(bits, array.view("u1").T)

    row_bytes = rows * bits // 8
    codes = Part("int.transposed", kind, (columns, rows), lambda parts: turned(parts["codes"]))
    if groups == 1 and e.vocabulary.blocks == "signed":
        # Compilers know one scale a channel as such, and not as a single block.
        packed = _store_transposed(e, symbol, codes, row_bytes, bits)
        per_row = Part(f"scales.{dtype}.channels", ONNX_TYPE[dtype], (rows,), _scales_as(dtype))
        return e.node("DequantizeLinear", packed, _store(e, symbol, per_row, dtype.bits // 8), axis=1)
    scales = Part(
        f"scales.{dtype}.transposed", ONNX_TYPE[dtype], (groups, rows), lambda parts: _scales_as(dtype)(parts).T
    )
    inputs = [
        _store_transposed(e, symbol, codes, row_bytes, bits),
        _store_transposed(e, symbol, scales, rows * dtype.bits // 8, dtype.bits),
    ]
    if not encoding.symmetric:
        zeros = Part("zero_points.transposed", kind, (groups, rows), lambda parts: turned(parts["zeros"]))
        inputs.append(_store_transposed(e, symbol, zeros, row_bytes, bits))
    block = columns // groups
    return e.node("DequantizeLinear", *inputs, axis=0, block_size=block)


def gather_decoded(e: Emitter, op: nn.Embedding, symbol: WeightSymbol) -> None:
    """Rows of an encoded table in standard ops: gather codes and scales, then decode those rows alone."""
    import numpy as np

    encoding = integer_encoding(symbol)
    if not e.vocabulary.has("BitShift", u8):
        e.result(op, "Gather", decoded(e, symbol, op.result.type.dtype), e[op.ids], axis=0)
        return
    columns = matrix_shape(symbol.recipe)[1]
    groups, bits = encoding.groups(columns), encoding.bits
    codes, scales, zeros = nbits(e, symbol, f32)
    ids = e[op.ids]
    grid = (*op.ids.type.shape, groups, columns // groups)
    picked = e.node("Gather", codes, ids, axis=0)  # u8[ids..., groups, bytes of a group]
    if bits == 4:
        picked = _unpacked(e, picked)
    numbers = e.node("Cast", picked, to=ONNX_TYPE[f32])
    column = e.sizes.shape((*op.ids.type.shape, groups, 1))
    if encoding.symmetric:
        zero = e.array(np.array(1 << (bits - 1), np.float32))
    else:
        zero = e.node("Gather", zeros, ids, axis=0)
        if bits == 4:
            pairs = e.sizes.shape((*op.ids.type.shape, -(-groups // 2) * 2))
            zero = e.node("Reshape", _unpacked(e, zero), pairs)
            zero = e.node("Slice", zero, e.ints(0), e.ints(groups), e.ints(-1))
        zero = e.node("Reshape", e.node("Cast", zero, to=ONNX_TYPE[f32]), column)
    centred = e.node("Sub", e.node("Reshape", numbers, e.sizes.shape(grid)), zero)
    scale = e.node("Reshape", e.node("Gather", scales, ids, axis=0), column)
    e.result(op, "Reshape", e.node("Mul", centred, scale), e.sizes.shape(op.result.type.shape))


def _unpacked(e: Emitter, packed: str) -> str:
    """u8[..., n] of two codes a byte -> u8[..., n, 2]."""
    import numpy as np

    low = e.node("BitwiseAnd", packed, e.array(np.array(15, np.uint8)))
    high = e.node("BitShift", packed, e.array(np.array(4, np.uint8)), direction="RIGHT")
    return e.node("Concat", e.node("Unsqueeze", low, e.ints(-1)), e.node("Unsqueeze", high, e.ints(-1)), axis=-1)
