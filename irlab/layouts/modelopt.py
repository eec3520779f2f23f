"""The layout of NVIDIA's ModelOpt, which TensorRT-LLM, vLLM and SGLang load, with an hf_quant_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ..encodings import Codes, Encoding, FloatEncoding, IntegerEncoding
from ..errors import InputError
from ..types import TensorType, f8e4m3, f32, i8, tensor, u8
from .base import Layout, Names, Shape, Tensors, field
from .floats import is_nvfp4, nvfp4_codes, packed_nibbles

_INT4, _INT8, _NVFP4 = "W4A16_AWQ", "W8A16", "W4A16_NVFP4"
CONFIG_FILE: Final = "hf_quant_config.json"


class ModelOpt(Layout):
    """Of a matrix [out, in], by quant_algo:

        W4A16_AWQ     weight u8[out / 2, in]       two rows a byte, the first in the lower nibble, as two's complements
          int4 sym    weight_scale [out, in / group]
        W8A16         weight i8[out, in]
          int8 sym    weight_scale [out]
        W4A16_NVFP4   weight u8[out, in / 2]       two numbers a byte, the lower nibble first
                      weight_scale f8e4m3[out, in / 16]
                      weight_scale_2 f32[]         what scales are multiplied by

    What AWQ divides out is folded into the layer before, so no pre_quant_scale is stored. FP8, NVFP4 and W8A8 of this
    layout round activations too, by scales that it stores; graphs that round none are weight-only.
    """

    name = "modelopt"

    def refusal(self, encoding: Encoding, shape: Shape) -> str:
        if isinstance(encoding, FloatEncoding) and is_nvfp4(encoding):
            return ""
        if isinstance(encoding, IntegerEncoding) and encoding.symmetric and encoding.scale is not i8:
            if encoding.bits == 4 and encoding.group > 0:
                return "" if shape[0] % 2 == 0 else f"the modelopt layout packs two rows to a byte, not {shape[0]}"
            if encoding.bits == 8 and encoding.group == 0:
                return ""
        return f"the modelopt layout holds symmetric int4 in groups, int8 with a scale a row, and NVFP4, not {encoding}"

    def types(self, encoding: Encoding, shape: Shape) -> dict[str, TensorType]:
        out, columns = shape
        if isinstance(encoding, FloatEncoding):
            return {
                "weight": tensor(u8, (out, columns // 2)),
                "weight_scale": tensor(f8e4m3, (out, columns // encoding.group)),
                "weight_scale_2": tensor(f32, ()),
            }
        assert isinstance(encoding, IntegerEncoding)
        if encoding.bits == 8:
            return {"weight": tensor(i8, shape), "weight_scale": tensor(encoding.scale, (out,))}
        scales = tensor(encoding.scale, (out, encoding.groups(shape[1])))
        return {"weight": tensor(u8, (out // 2, columns)), "weight_scale": scales}

    def pack(self, encoding: Encoding, shape: Shape, codes: Codes) -> Tensors:
        if isinstance(encoding, FloatEncoding):
            return {
                "weight": packed_nibbles(codes["codes"]),
                "weight_scale": codes["scales"],
                "weight_scale_2": np.array(codes["row_scales"][0, 0], np.float32),
            }
        assert isinstance(encoding, IntegerEncoding)
        if encoding.bits == 8:
            return {"weight": codes["codes"], "weight_scale": codes["scales"].reshape(-1)}
        nibbles = codes["codes"].view(np.uint8) & np.uint8(15)
        return {"weight": nibbles[::2] | (nibbles[1::2] << np.uint8(4)), "weight_scale": codes["scales"]}

    def unpack(self, encoding: Encoding, shape: Shape, tensors: Tensors) -> Codes:
        weight, scales = tensors["weight"], tensors["weight_scale"]
        if isinstance(encoding, FloatEncoding):
            return nvfp4_codes(weight, scales, np.float32(tensors["weight_scale_2"].reshape(-1)[0]))
        assert isinstance(encoding, IntegerEncoding)
        if encoding.bits == 8:
            return {"codes": weight, "scales": scales.reshape(-1, 1)}
        nibbles = np.empty(shape, np.uint8)
        nibbles[::2], nibbles[1::2] = weight & np.uint8(15), weight >> np.uint8(4)
        # The sign of a nibble is its highest bit.
        return {"codes": ((nibbles ^ np.uint8(8)).view(np.int8) - np.int8(8)), "scales": scales}

    def files(self, names: Names) -> dict[str, Any]:
        encoding = names.single(self.name)
        algorithm, group = _algorithm(encoding)
        quantization: dict[str, Any] = {"quant_algo": algorithm, "kv_cache_quant_algo": None}
        if group:
            quantization["group_size"] = group
        if algorithm == _INT4:
            quantization |= {"has_zero_point": False, "pre_quant_scale": False}
        quantization["exclude_modules"] = list(names.plain)
        # The version names the layout, that of ModelOpt 0.47.
        description = {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": quantization}
        flat = {"quant_method": "modelopt", "ignore": list(names.plain), **quantization}
        return {CONFIG_FILE: description, "quantization_config": flat}

    def encoding(self, config: Mapping[str, Any], module: str, stored: Mapping[str, TensorType]) -> Encoding:
        algorithm, scale = config.get("quant_algo"), stored["weight_scale"].dtype
        if algorithm == _INT4:
            if config.get("pre_quant_scale"):
                raise InputError("irlab reads no checkpoints whose inputs are scaled by a pre_quant_scale")
            return IntegerEncoding(4, True, field(config, "group_size", int), scale)
        if algorithm == _INT8:
            return IntegerEncoding(8, True, 0, scale)
        if algorithm == _NVFP4:
            return FloatEncoding("e2m1", field(config, "group_size", int), "e4m3")
        raise InputError(f"irlab reads the algorithms {_INT4}, {_INT8} and {_NVFP4} of ModelOpt, not {algorithm}")


def _algorithm(encoding: Encoding) -> tuple[str, int]:
    """The name of the algorithm, and the group where it has one."""
    if isinstance(encoding, FloatEncoding):
        return _NVFP4, encoding.group
    assert isinstance(encoding, IntegerEncoding)
    return (_INT8, 0) if encoding.bits == 8 else (_INT4, encoding.group)
