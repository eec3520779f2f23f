"""The layout of compressed-tensors, which llm-compressor writes and vLLM, SGLang and transformers load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ..encodings import TENSOR, Codes, Encoding, FloatEncoding, IntegerEncoding
from ..errors import InputError
from ..types import TensorType, i32, i64, tensor
from .base import Activation, Form, Layout, Names, Scheme, Shape, Tensors, field, packed_words, unpacked_words, words
from .floats import NVFP4, Numbers, is_fp8, is_int8, is_nvfp4, strategy_of
from .integers import codes_of_raw, raw_codes, require_integers

_SYMBOLIC_TARGETS: Final = ("Linear",)
_BITS: Final = (2, 3, 4, 5, 6, 8)


class PackQuantized(Form):
    """Integers as streams of bits:

    weight_packed       i32[out, in * bits / 32]       q + 2^(bits - 1), a stream a row
    weight_scale        [out, groups]
    weight_shape        i64[2]
    weight_zero_point   i32[out * bits / 32, groups]   asymmetric only, a stream a column
    """

    name = "pack-quantized"

    def types(self, encoding: Encoding, shape: Shape) -> dict[str, TensorType]:
        assert isinstance(encoding, IntegerEncoding)
        out, columns = shape
        found = {
            "weight_packed": tensor(i32, (out, words(columns, encoding.bits))),
            "weight_scale": tensor(encoding.scale, (out, encoding.groups(columns))),
            "weight_shape": tensor(i64, (2,)),
        }
        if not encoding.symmetric:
            found["weight_zero_point"] = tensor(i32, (words(out, encoding.bits), encoding.groups(columns)))
        return found

    def pack(self, encoding: Encoding, shape: Shape, codes: Codes) -> Tensors:
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
        assert isinstance(encoding, IntegerEncoding)
        zeros = None
        if not encoding.symmetric:
            zeros = unpacked_words(tensors["weight_zero_point"].T, encoding.bits, shape[0]).T
        raw = unpacked_words(tensors["weight_packed"], encoding.bits, shape[1])
        return codes_of_raw(encoding, raw, tensors["weight_scale"], zeros)


_PACKED = PackQuantized()
_INTEGERS, _FLOATS = (Numbers(name, row=(1,), tensor=(1,)) for name in ("int-quantized", "float-quantized"))
_NVFP4 = NVFP4("nvfp4-pack-quantized", packed="weight_packed", unit="weight_global_scale", shape=(1,), inverse=True)


class CompressedTensors(Layout):
    """Of a matrix [out, in], by format:

        pack-quantized         see PackQuantized: integers that are decoded, int2 to int8
        int-quantized          weight i8[out, in], weight_scale [out, 1], or [1] for the tensor
          int8                 input_scale f32[1]            where activations are static
        float-quantized        weight f8e4m3[out, in], weight_scale [out, 1], or [1] for the tensor
          FP8                  input_scale f32[1]            where activations are static
        nvfp4-pack-quantized   weight_packed u8[out, in / 2], two numbers a byte, the lower nibble first
          NVFP4                weight_scale f8e4m3[out, in / 16]
                               weight_global_scale f32[1]    what scales are divided by
                               input_global_scale f32[1]     likewise, where activations are rounded

    Different schemes are different groups of one file.
    """

    name = "compressed-tensors"
    forms = (_PACKED, _INTEGERS, _FLOATS, _NVFP4)

    def form(self, scheme: Scheme) -> Form:
        encoding, activation = scheme.encoding, scheme.activation
        element = "" if activation is None else activation.element
        if is_nvfp4(encoding) and element in ("", "e2m1"):
            return _NVFP4
        if is_fp8(encoding, 0, TENSOR) and element in ("", "e4m3"):
            return _FLOATS
        if is_int8(encoding, 0, TENSOR) and element == "int8":
            return _INTEGERS
        if isinstance(encoding, FloatEncoding) or activation is not None:
            raise InputError(
                "the compressed-tensors layout holds NVFP4, FP8 (e4m3) and int8 with a scale for each row or the "
                f"tensor, read by activations that are rounded likewise, not {scheme}"
            )
        require_integers(scheme, _BITS, self.name)
        return _PACKED

    def activation_refusal(self, activation: Activation) -> str:
        if activation.per == "tensor" and not activation.static:
            return f"vLLM loads no {activation} from the compressed-tensors layout"
        return ""

    def scale_tensors(self, activation: Activation, scale: float) -> Tensors:
        if not activation.static:
            return {}
        if activation.element == "e2m1":
            return {"input_global_scale": np.array([np.float32(1) / np.float32(scale)])}
        return {"input_scale": np.array([scale], np.float32)}

    def scale(self, activation: Activation, stored: Tensors) -> float:
        if activation.element == "e2m1":
            return float(np.float32(1) / stored["input_global_scale"].astype(np.float32).reshape(-1)[0])
        return float(stored["input_scale"].astype(np.float32).reshape(-1)[0])

    def files(self, names: Names) -> dict[str, Any]:
        groups: dict[Scheme, list[str]] = {}
        for module, scheme in names.encoded.items():
            groups.setdefault(scheme, []).append(module)
        formats = {self.form(scheme).name for scheme in groups}
        config_groups = {}
        for number, (scheme, modules) in enumerate(groups.items()):
            config_groups[f"group_{number}"] = {
                "targets": list(_SYMBOLIC_TARGETS) if len(groups) == 1 else modules,
                "weights": _arguments(scheme.encoding),
                "input_activations": None if scheme.activation is None else _rounded(scheme.activation),
                "output_activations": None,
                "format": self.form(scheme).name,
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

    def scheme(self, config: Mapping[str, Any], module: str, stored: Mapping[str, TensorType]) -> Scheme:
        for group in field(config, "config_groups", dict).values():
            if isinstance(group, dict) and any(_is_target(module, target) for target in group.get("targets") or ()):
                encoding = _encoding(field(group, "weights", dict), stored)
                rounded = group.get("input_activations")
                return Scheme(encoding, _activation(field(group, "input_activations", dict)) if rounded else None)
        raise InputError(f"no group of the quantisation config is for {module}")


_NVFP4_ARGUMENTS: Final = {
    "num_bits": 4,
    "type": "float",
    "strategy": "tensor_group",
    "group_size": 16,
    "symmetric": True,
    "scale_dtype": "torch.float8_e4m3fn",
}


def _arguments(encoding: Encoding) -> dict[str, Any]:
    """The `weights` of a group: QuantizationArgs of compressed-tensors."""
    if is_nvfp4(encoding):
        return {**_NVFP4_ARGUMENTS, "dynamic": False}
    if isinstance(encoding, FloatEncoding):
        return _numbers("float", strategy_of(encoding), dynamic=False)
    assert isinstance(encoding, IntegerEncoding)
    strategy: dict[str, Any] = {"strategy": strategy_of(encoding)}
    if encoding.group > 0:
        strategy = {"strategy": "group", "group_size": encoding.group}
    return {"num_bits": encoding.bits, "type": "int", **strategy, "symmetric": encoding.symmetric, "dynamic": False}


def _rounded(activation: Activation) -> dict[str, Any]:
    """The `input_activations` of a group. Scales of blocks are found when the model runs ("local")."""
    if activation.element == "e2m1":
        return {**_NVFP4_ARGUMENTS, "dynamic": "local"}
    kind = "int" if activation.element == "int8" else "float"
    return _numbers(kind, activation.per, dynamic=not activation.static)


def _numbers(kind: str, strategy: str, *, dynamic: bool) -> dict[str, Any]:
    return {"num_bits": 8, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": dynamic}


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
    strategy, symmetric = arguments.get("strategy") or "tensor", field(arguments, "symmetric", bool, True)
    scale = stored["weight_scale"].dtype
    group = {"channel": 0, "tensor": TENSOR}.get(strategy)
    if kind == "int" and (strategy == "group" or group is not None):
        group = max(0, field(arguments, "group_size", int)) if group is None else group
        return IntegerEncoding(bits, symmetric, group, scale)
    if kind == "float" and bits == 8 and group is not None:
        return FloatEncoding("e4m3", group, str(scale))
    if kind == "float" and bits == 4 and strategy == "tensor_group":
        return FloatEncoding("e2m1", field(arguments, "group_size", int), "e4m3")
    raise InputError(f"irlab reads no weights of {bits}-bit {kind}, strategy {strategy}")


def _activation(arguments: Mapping[str, Any]) -> Activation:
    kind, bits = arguments.get("type", "int"), field(arguments, "num_bits", int)
    strategy, dynamic = arguments.get("strategy") or "tensor", arguments.get("dynamic", False)
    if field(arguments, "symmetric", bool, True):
        if (kind, bits, strategy, dynamic) == ("float", 4, "tensor_group", "local"):
            return Activation("e2m1", "block", True)
        if bits == 8 and kind in ("int", "float") and strategy in ("tensor", "token") and isinstance(dynamic, bool):
            return Activation("int8" if kind == "int" else "e4m3", strategy, not dynamic)
    raise InputError(f"irlab rounds no activations to {bits}-bit {kind}, strategy {strategy}, dynamic {dynamic}")
