"""How do encoded weights stand in a network? The same codes as constants, decoded by a Dequantize layer.

TensorRT decodes w = s * q with one s for each block of columns, or for each row; it has no zero points. Codes of 4
bits lie two a byte, the even column in the low half. An asymmetric integer q with zero point z is stored as q - z,
which fits 8 bits where q has fewer: the same numbers, in more bits than the encoding has.

Scales of blocks have the type that is decoded to, as the builder asks for; those of rows are f32. Scales of E4M3
(NVFP4) are constants in FP8, which a Dequantize of their own decodes by the f32 of the tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from irlab.backends.tensorrt.library import ITensor, load
from irlab.backends.tensorrt.numbers import trt_type
from irlab.encodings import Codes, Encoding, FloatEncoding, IntegerEncoding, LevelEncoding
from irlab.errors import LegalityError
from irlab.types import DType, f32
from irlab.weights import WeightSymbol, numpy_dtype, static_shape

if TYPE_CHECKING:
    import numpy as np

    from irlab.backends.tensorrt.emitter import Emitter
    from irlab.encodings.grid import Points

_BITS: Final = {"int4": 4, "int8": 8, "fp4": 4, "fp8": 8}
"""The types in which TensorRT holds codes."""

_ELEMENTS: Final = {"e2m1": "fp4", "e4m3": "fp8"}
"""The formats of small floats that it has."""


def stored_type(encoding: Encoding) -> str:
    """The type in which TensorRT holds the codes: a key of _BITS; empty where it cannot."""
    if isinstance(encoding, FloatEncoding):
        return _ELEMENTS.get(encoding.element, "")
    if not isinstance(encoding, IntegerEncoding):
        return ""
    if encoding.symmetric:
        return "int4" if encoding.bits == 4 else "int8"
    return "int8" if encoding.bits < 8 else ""


def refusal(encoding: Encoding) -> str:
    """Why TensorRT cannot hold weights in `encoding`; empty if it can."""
    if stored_type(encoding):
        return ""
    if isinstance(encoding, IntegerEncoding):
        return "its Dequantize layer has no zero points"
    return "its Dequantize layer decodes integers, e4m3 and e2m1 with a scale"


def emulated(encoding: Encoding) -> bool:
    """Whether the codes take more bits than the encoding has."""
    return isinstance(encoding, IntegerEncoding) and bool(_BITS.get(stored_type(encoding), 0) > encoding.bits)


def by_row(encoding: IntegerEncoding | FloatEncoding) -> bool:
    """Whether a row has one scale."""
    return encoding.group <= 0


def keeps_scales(encoding: Encoding, dtype: DType) -> bool:
    """Whether scales are held as they are where weights are decoded to `dtype`."""
    if not isinstance(encoding, IntegerEncoding | FloatEncoding) or dtype is f32 or by_row(encoding):
        return True
    return str(encoding.scale) in (str(dtype), "e8m0")


def dequantized(e: Emitter, symbol: WeightSymbol, dtype: DType) -> ITensor:
    """The Dequantize layer over the codes of `symbol`, giving `dtype`."""
    encoding = symbol.type.encoding
    assert isinstance(encoding, IntegerEncoding | FloatEncoding)
    kind = stored_type(encoding)
    e.low_bit[symbol.name] = kind
    layer = e.add("dequantize", _codes(e, symbol, kind), _scales(e, symbol, encoding, dtype), trt_type(dtype))
    if by_row(encoding):
        layer.axis = 0
    return layer.get_output(0)


def _codes(e: Emitter, symbol: WeightSymbol, kind: str) -> ITensor:
    shape, packed = static_shape(symbol.type), _BITS[kind] == 4
    width = -(-shape[-1] // 2) if packed else shape[-1]

    def convert(codes: Codes) -> np.ndarray:
        signed = _bytes(*_split(symbol, codes)).reshape(-1, *shape[1:])
        return nibbles(signed) if packed else signed

    array = e.constants.encoded(symbol, "codes", (*shape[:-1], width), "u1", convert)
    return e.constant(array, shape, getattr(load(), kind), symbol.name)


def _scales(e: Emitter, symbol: WeightSymbol, encoding: IntegerEncoding | FloatEncoding, dtype: DType) -> ITensor:
    lead, columns = static_shape(symbol.type)[:-1], static_shape(symbol.type)[-1]
    blocks = (*lead, encoding.groups(columns))
    if isinstance(encoding, FloatEncoding) and encoding.scale == "e4m3":
        return _decoded_scales(e, symbol, blocks, dtype)
    kind = f32 if by_row(encoding) else dtype

    def convert(codes: Codes) -> np.ndarray:
        return _as(symbol, _split(symbol, codes)[1].scale, kind).reshape(-1, *blocks[1:])

    array = e.constants.encoded(symbol, f"scales.{kind}", blocks, numpy_dtype(kind), convert)
    shape = lead if by_row(encoding) else blocks
    return e.constant(array, shape, trt_type(kind), f"{symbol.name}.scales")


def _decoded_scales(e: Emitter, symbol: WeightSymbol, blocks: tuple[int, ...], dtype: DType) -> ITensor:
    """Scales of E4M3 times the f32 of the tensor, which a weight that was joined from several has for each row."""
    array = e.constants.encoded(symbol, "scales", blocks, "u1", lambda codes: codes["scales"].view("u1"))
    units = e.constants.encoded(symbol, "units", (*blocks[:-1], 1), "f4", lambda codes: codes["row_scales"])
    scales = e.constant(array, blocks, load().fp8, f"{symbol.name}.scales")
    one = bool((units == units.flat[0]).all())
    unit = e.constant(units, () if one else blocks[:-1], trt_type(f32), f"{symbol.name}.unit")
    layer = e.add("dequantize", scales, unit, trt_type(dtype))
    if not one:
        layer.axis = 0
    return layer.get_output(0)


def _split(symbol: WeightSymbol, codes: Codes) -> tuple[np.ndarray, Points]:
    """Codes [rows, columns] and what they stand for."""
    encoding = symbol.type.encoding
    assert isinstance(encoding, LevelEncoding)
    return encoding.split({part: rows.reshape(-1, rows.shape[-1]) for part, rows in codes.items()})


def _as(symbol: WeightSymbol, scales: np.ndarray, dtype: DType) -> np.ndarray:
    """Scales in `dtype`. Raises LegalityError where one overflows or vanishes."""
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        found: np.ndarray = scales.astype(numpy_dtype(dtype))
    if not np.isfinite(found).all() or ((found == 0) & (scales != 0)).any():
        raise LegalityError(f"a scale of weight '{symbol.name}' is outside the range of {dtype}", "use precision=bf16")
    return found


def _bytes(numbers: np.ndarray, points: Points) -> np.ndarray:
    """Codes [rows, columns] as the bytes that stand for them: integers with the zero point of their group taken off,
    and the bits of small floats."""
    import numpy as np

    if points.zero is None:
        return numbers.view(np.uint8)
    grouped = numbers.reshape(*points.zero.shape, -1).astype(np.int16)
    signed = (grouped - points.zero[..., None].astype(np.int16)).astype(np.int8)
    return signed.view(np.uint8).reshape(numbers.shape)


def nibbles(codes: np.ndarray) -> np.ndarray:
    """u8[..., columns] of 4-bit codes -> u8[..., columns / 2], the even column in the low half."""
    import numpy as np

    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return (codes[..., 0::2] & 15) | (codes[..., 1::2] << 4)
