"""How do encoded weights stand in a network? The same codes as constants, decoded by a Dequantize layer.

TensorRT decodes w = s * q with one s for each block of columns, or for each row; it has no zero points. Codes of 4 bits
are INT4, two a byte with the even column in the low half; others are INT8. An asymmetric code q with zero point z is
stored as q - z, which fits 8 bits where q has fewer: the same numbers, in more bits than the encoding has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from irlab.backends.tensorrt.library import ITensor, load
from irlab.backends.tensorrt.numbers import trt_type
from irlab.encodings import Codes, Encoding, IntegerEncoding
from irlab.errors import LegalityError
from irlab.types import DType
from irlab.weights import WeightSymbol, numpy_dtype, static_shape

if TYPE_CHECKING:
    import numpy as np

    from irlab.backends.tensorrt.emitter import Emitter
    from irlab.encodings.grid import Points

_BITS: Final = {"int4": 4, "int8": 8}


def stored_type(encoding: Encoding) -> str:
    """The type in which TensorRT holds the codes: "int4", "int8"; empty where it cannot."""
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
    return "its Dequantize layer decodes integers with a scale"


def emulated(encoding: Encoding) -> bool:
    """Whether the codes take more bits than the encoding has."""
    return isinstance(encoding, IntegerEncoding) and bool(_BITS.get(stored_type(encoding), 0) > encoding.bits)


def dequantized(e: Emitter, symbol: WeightSymbol, dtype: DType) -> ITensor:
    """The Dequantize layer over the codes of `symbol`, giving `dtype`; scales are stored in that dtype, as the builder
    asks for."""
    import numpy as np

    encoding = symbol.type.encoding
    assert isinstance(encoding, IntegerEncoding)
    kind, shape = stored_type(encoding), static_shape(symbol.type)
    lead, columns = shape[:-1], shape[-1]
    groups = encoding.groups(columns)
    half = kind == "int4"
    wanted = numpy_dtype(dtype)
    parts = {
        "codes": ((*lead, -(-columns // 2) if half else columns), "u1" if half else "i1"),
        f"scales.{dtype}": ((*lead, groups), wanted),
    }

    def convert(codes: Codes) -> dict[str, np.ndarray]:
        numbers, points = encoding.split({part: rows.reshape(-1, rows.shape[-1]) for part, rows in codes.items()})
        signed = _signed(numbers, points).reshape(-1, *shape[1:])
        with np.errstate(over="ignore"):
            scales = points.scale.astype(wanted).reshape(-1, *shape[1:-1], groups)
        if not np.isfinite(scales).all():
            raise LegalityError(f"a scale of weight '{symbol.name}' is too large for {dtype}", "use precision=bf16")
        return {"codes": nibbles(signed) if half else signed, f"scales.{dtype}": scales}

    arrays = e.constants.encoded(symbol, parts, convert)
    e.low_bit[symbol.name] = kind
    stored = e.constant(arrays["codes"], shape, getattr(load(), kind), symbol.name)
    scales = arrays[f"scales.{dtype}"]
    per_row = groups == 1 and len(lead) == 1
    # One scale a row is per-channel quantization along the first axis, for which the builder has its fast kernels.
    scale_shape = lead if per_row and kind == "int8" else (*lead, groups)
    scale = e.constant(scales, scale_shape, trt_type(dtype), f"{symbol.name}.scales")
    layer = e.add("dequantize", stored, scale, trt_type(dtype))
    if scale_shape == lead:
        layer.axis = 0
    return layer.get_output(0)


def _signed(numbers: np.ndarray, points: Points) -> np.ndarray:
    """Codes [rows, columns] as signed numbers with the zero point of their group taken off."""
    import numpy as np

    if points.zero is None:
        return numbers.astype(np.int8, copy=False)
    grouped = numbers.reshape(*points.zero.shape, -1).astype(np.int16)
    return (grouped - points.zero[..., None].astype(np.int16)).astype(np.int8).reshape(numbers.shape)


def nibbles(codes: np.ndarray) -> np.ndarray:
    """i8[..., columns] of 4-bit codes -> u8[..., columns / 2], the even column in the low half."""
    import numpy as np

    raw = codes.view(np.uint8)
    if raw.shape[-1] % 2:
        raw = np.pad(raw, [(0, 0)] * (raw.ndim - 1) + [(0, 1)])
    return (raw[..., 0::2] & 15) | (raw[..., 1::2] << 4)
