"""The layout of compressed-tensors, which llm-compressor writes and vLLM, SGLang and transformers load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ..encodings import Codes, Encoding, FloatEncoding, IntegerEncoding
from ..errors import InputError
from ..types import TensorType, f8e4m3, f32, i32, i64, tensor, u8
from .base import Layout, Names, Shape, Tensors, field, packed_words, unpacked_words, words
from .floats import e4m3_codes, e4m3_numbers, floats_refusal, is_nvfp4, nvfp4_codes, packed_nibbles
from .integers import codes_of_raw, integer_encoding, integer_refusal, raw_codes

_PACKED, _FLOATS, _NVFP4 = "pack-quantized", "float-quantized", "nvfp4-pack-quantized"
_SYMBOLIC_TARGETS: Final = ("Linear",)


class CompressedTensors(Layout):
    """Of a matrix [out, in], by format:

        pack-quantized         weight_packed i32[out, in * bits / 32]   q + 2^(bits - 1), a stream of bits a row
          integers             weight_scale [out, groups]
                               weight_zero_point i32[out * bits / 32, groups]   asymmetric only, a stream a column
                               weight_shape i64[2]
        float-quantized        weight f8e4m3[out, in]
          FP8                  weight_scale [out, 1]
        nvfp4-pack-quantized   weight_packed u8[out, in / 2]            two numbers a byte, the lower nibble first
                               weight_scale f8e4m3[out, in / 16]
                               weight_global_scale f32[1]               what scales are divided by

    Different encodings are different groups of one file. NVFP4 stores the inverse of our scale of the tensor: read back
    it may differ in the last bit.
    """

    name = "compressed-tensors"

    def refusal(self, encoding: Encoding, shape: Shape) -> str:
        if isinstance(encoding, FloatEncoding):
            return floats_refusal(encoding, self.name)
        return integer_refusal(encoding, (2, 3, 4, 5, 6, 8), self.name)

    def types(self, encoding: Encoding, shape: Shape) -> dict[str, TensorType]:
        out, columns = shape
        if isinstance(encoding, FloatEncoding):
            if is_nvfp4(encoding):
                return {
                    "weight_global_scale": tensor(f32, (1,)),
                    "weight_packed": tensor(u8, (out, columns // 2)),
                    "weight_scale": tensor(f8e4m3, (out, columns // encoding.group)),
                }
            scale = encoding.packed_types(shape)["scales"].dtype
            return {"weight": tensor(f8e4m3, shape), "weight_scale": tensor(scale, (out, 1))}
        assert isinstance(encoding, IntegerEncoding)
        scales = {"weight_scale": tensor(encoding.scale, (out, encoding.groups(shape[1])))}
        found = {"weight_packed": tensor(i32, (out, words(columns, encoding.bits))), **scales}
        found["weight_shape"] = tensor(i64, (2,))
        if not encoding.symmetric:
            found["weight_zero_point"] = tensor(i32, (words(out, encoding.bits), encoding.groups(shape[1])))
        return found

    def pack(self, encoding: Encoding, shape: Shape, codes: Codes) -> Tensors:
        if isinstance(encoding, FloatEncoding):
            if is_nvfp4(encoding):
                unit = codes["row_scales"][0, 0]
                return {
                    "weight_global_scale": np.array([1 / np.float64(unit)], np.float32),
                    "weight_packed": packed_nibbles(codes["codes"]),
                    "weight_scale": codes["scales"],
                }
            return {"weight": e4m3_numbers(codes["codes"]), "weight_scale": codes["scales"]}
        assert isinstance(encoding, IntegerEncoding)
        found = {
            "weight_packed": packed_words(raw_codes(encoding, codes), encoding.bits),
            "weight_scale": codes["scales"],
            "weight_shape": np.array(shape, np.int64),
        }
        if not encoding.symmetric:
            zeros = np.ascontiguousarray(codes["zeros"].T)
            found["weight_zero_point"] = np.ascontiguousarray(packed_words(zeros, encoding.bits).T)
        return found

    def unpack(self, encoding: Encoding, shape: Shape, tensors: Tensors) -> Codes:
        scales = tensors["weight_scale"]
        if isinstance(encoding, FloatEncoding):
            if is_nvfp4(encoding):
                unit = np.float32(1 / np.float64(tensors["weight_global_scale"].reshape(-1)[0]))
                return nvfp4_codes(tensors["weight_packed"], scales, unit)
            return {"codes": e4m3_codes(tensors["weight"]), "scales": scales}
        assert isinstance(encoding, IntegerEncoding)
        zeros = None
        if not encoding.symmetric:
            zeros = unpacked_words(tensors["weight_zero_point"].T, encoding.bits, shape[0]).T
        return codes_of_raw(encoding, unpacked_words(tensors["weight_packed"], encoding.bits, shape[1]), scales, zeros)

    def files(self, names: Names) -> dict[str, Any]:
        groups: dict[Encoding, list[str]] = {}
        for module, encoding in names.encoded.items():
            groups.setdefault(encoding, []).append(module)
        formats = {_format(encoding) for encoding in groups}
        config_groups = {}
        for number, (encoding, modules) in enumerate(groups.items()):
            config_groups[f"group_{number}"] = {
                "targets": list(_SYMBOLIC_TARGETS) if len(groups) == 1 else modules,
                "weights": _arguments(encoding),
                "input_activations": None,
                "output_activations": None,
                "format": _format(encoding),
            }
        return {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": formats.pop() if len(formats) == 1 else "mixed-precision",
                "quantization_status": "compressed",
                "global_compression_ratio": None,
                "kv_cache_scheme": None,
                "ignore": list(names.plain),
                "config_groups": config_groups,
            }
        }

    def encoding(self, config: Mapping[str, Any], module: str, stored: Mapping[str, TensorType]) -> Encoding:
        for group in field(config, "config_groups", dict).values():
            if isinstance(group, dict) and any(_is_target(module, target) for target in group.get("targets") or ()):
                return _encoding(field(group, "weights", dict), stored)
        raise InputError(f"no group of the quantisation config is for {module}")


def _format(encoding: Encoding) -> str:
    if isinstance(encoding, FloatEncoding):
        return _NVFP4 if is_nvfp4(encoding) else _FLOATS
    return _PACKED


def _arguments(encoding: Encoding) -> dict[str, Any]:
    """The `weights` of a group: QuantizationArgs of compressed-tensors."""
    if isinstance(encoding, FloatEncoding):
        if is_nvfp4(encoding):
            scheme = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": encoding.group}
            return {**scheme, "symmetric": True, "dynamic": False}
        return {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
    assert isinstance(encoding, IntegerEncoding)
    strategy: dict[str, Any] = (
        {"strategy": "group", "group_size": encoding.group} if encoding.group else {"strategy": "channel"}
    )
    return {"num_bits": encoding.bits, "type": "int", **strategy, "symmetric": encoding.symmetric, "dynamic": False}


def _is_target(module: str, target: object) -> bool:
    if not isinstance(target, str):
        return False
    if target.startswith("re:"):
        # A pattern of a checkpoint is not trusted: only the wildcards that such patterns have in practice are known.
        parts = target.removeprefix("re:").split(".*")
        pattern = ".*".join(re.escape(part.replace(r"\.", ".").rstrip("$")) for part in parts)
        return re.match(pattern, module) is not None
    return target in _SYMBOLIC_TARGETS or target == module


def _encoding(arguments: Mapping[str, Any], stored: Mapping[str, TensorType]) -> Encoding:
    kind, bits = arguments.get("type", "int"), field(arguments, "num_bits", int)
    strategy, symmetric = arguments.get("strategy"), field(arguments, "symmetric", bool, True)
    scale = stored["weight_scale"].dtype
    if kind == "int" and strategy in ("group", "channel"):
        group = field(arguments, "group_size", int) if strategy == "group" else 0
        return integer_encoding(bits, symmetric, group, scale)
    if kind == "float" and bits == 8 and strategy == "channel":
        return FloatEncoding("e4m3", 0, str(scale))
    if kind == "float" and bits == 4 and strategy == "tensor_group":
        return FloatEncoding("e2m1", field(arguments, "group_size", int), "e4m3")
    raise InputError(f"irlab reads no weights of {bits}-bit {kind}, strategy {strategy}")
