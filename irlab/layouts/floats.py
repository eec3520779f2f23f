"""What layouts of 8-bit numbers and of NVFP4 have in common: codes as they are, and the scale of a whole tensor."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ..encodings import TENSOR, Codes, Encoding, FloatEncoding, IntegerEncoding
from ..errors import InputError
from ..types import DType, TensorType, f8e4m3, f32, i8, tensor, u8
from .base import AnyArray, Form, Shape, Tensors

_FLOATS = ("f16", "bf16", "f32")


def is_nvfp4(encoding: Encoding) -> bool:
    """Whether it is E2M1 in groups of 16 under scales of E4M3."""
    return encoding == FloatEncoding("e2m1", 16, "e4m3")


def is_fp8(encoding: Encoding, *groups: int) -> bool:
    """Whether it is E4M3 with a float scale for each row (a group of 0) or for the tensor (TENSOR), of `groups`."""
    return isinstance(encoding, FloatEncoding) and (
        encoding.element == "e4m3" and encoding.group in groups and encoding.scale in _FLOATS
    )


def is_int8(encoding: Encoding, *groups: int) -> bool:
    """Whether it is symmetric integers of 8 bits with a float scale for each row or for the tensor, of `groups`."""
    return isinstance(encoding, IntegerEncoding) and (
        encoding.bits == 8 and encoding.symmetric and encoding.group in groups and encoding.scale is not i8
    )


@dataclass(frozen=True)
class Numbers(Form):
    """Numbers of 8 bits as they are:

    weight         i8[out, in] or f8e4m3[out, in]
    weight_scale   [out, *row], or `tensor` for one of the tensor
    """

    name: str
    row: Shape
    tensor: Shape

    def types(self, encoding: Encoding, shape: Shape) -> dict[str, TensorType]:
        number, scale = _dtypes(encoding, shape)
        scales = self.tensor if encoding.tensor_wide else (shape[0], *self.row)
        return {"weight": tensor(number, shape), "weight_scale": tensor(scale, scales)}

    def pack(self, encoding: Encoding, shape: Shape, codes: Codes) -> Tensors:
        scales = codes["scales"]
        scales = single(scales, self.tensor) if encoding.tensor_wide else scales.reshape(shape[0], *self.row)
        numbers = codes["codes"]
        if numbers.dtype == np.uint8:
            numbers = numbers.view(ml_dtypes.float8_e4m3fn)
        return {"weight": numbers, "weight_scale": scales}

    def unpack(self, encoding: Encoding, shape: Shape, tensors: Tensors) -> Codes:
        numbers, scales = tensors["weight"], tensors["weight_scale"]
        if numbers.dtype != np.int8:
            numbers = np.ascontiguousarray(numbers).view(np.uint8)
        spread = np.broadcast_to(scales.reshape(-1, 1), (shape[0], 1))
        return {"codes": numbers, "scales": np.ascontiguousarray(spread)}


@dataclass(frozen=True)
class NVFP4(Form):
    """Two numbers a byte, the lower nibble first, under scales of E4M3 and one of the tensor:

    PACKED         u8[out, in / 2]
    weight_scale   f8e4m3[out, in / 16]
    UNIT           f32 `shape`: what scales are multiplied by, or `inverse` where they are divided by it
    """

    name: str
    packed: str
    unit: str
    shape: Shape
    inverse: bool

    def types(self, encoding: Encoding, shape: Shape) -> dict[str, TensorType]:
        out, columns = shape
        return {
            self.packed: tensor(u8, (out, columns // 2)),
            "weight_scale": tensor(f8e4m3, (out, columns // 16)),
            self.unit: tensor(f32, self.shape),
        }

    def pack(self, encoding: Encoding, shape: Shape, codes: Codes) -> Tensors:
        unit, numbers = single(codes["row_scales"], self.shape), codes["codes"]
        return {
            self.packed: numbers[:, ::2] | (numbers[:, 1::2] << np.uint8(4)),
            "weight_scale": codes["scales"],
            self.unit: np.float32(1) / unit if self.inverse else unit,
        }

    def unpack(self, encoding: Encoding, shape: Shape, tensors: Tensors) -> Codes:
        packed, unit = tensors[self.packed], tensors[self.unit].reshape(-1)[0]
        numbers = np.empty(shape, np.uint8)
        numbers[:, ::2], numbers[:, 1::2] = packed & np.uint8(15), packed >> np.uint8(4)
        with np.errstate(divide="ignore"):
            unit = np.float32(1) / unit if self.inverse else unit
        return {
            "codes": numbers,
            "scales": tensors["weight_scale"],
            "row_scales": np.full((shape[0], 1), unit, np.float32),
        }


def single(scales: AnyArray, shape: Shape) -> AnyArray:
    """The one scale of a tensor, of this `shape`, from those of its rows. Raises InputError where they differ."""
    if (scales != scales.flat[0]).any():
        raise InputError(
            "rows have different scales of the tensor, as after joining matrices", "quantise what was joined"
        )
    return scales[:1, :1].reshape(shape).copy()


def _dtypes(encoding: Encoding, shape: Shape) -> tuple[DType, DType]:
    """Of numbers, and of their scales."""
    number = i8 if isinstance(encoding, IntegerEncoding) else f8e4m3
    return number, encoding.packed_types(shape)["scales"].dtype


def strategy_of(encoding: Encoding) -> str:
    """What has one scale of 8-bit numbers, in the words of compressed-tensors."""
    assert isinstance(encoding, IntegerEncoding | FloatEncoding)
    return "tensor" if encoding.group == TENSOR else "channel"
