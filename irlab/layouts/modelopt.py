"""The layout of NVIDIA's ModelOpt, which TensorRT-LLM, vLLM and SGLang load, with an hf_quant_config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..encodings import TENSOR, Codes, Encoding, FloatEncoding, IntegerEncoding
from ..errors import InputError
from ..types import TensorType, i8, tensor, u8
from .base import Activation, Form, Layout, Names, Scheme, Shape, Tensors
from .floats import NVFP4, Numbers, is_fp8, is_int8, is_nvfp4

CONFIG_FILE: Final = "hf_quant_config.json"
_VERSION: Final = "0.47.0"
"""Of the ModelOpt whose layout this is."""

_MIXED: Final = "MIXED_PRECISION"


class TwoRows(Form):
    """Integers of 4 bits, two rows a byte, the first in the lower nibble, as two's complements:

    weight         u8[out / 2, in]
    weight_scale   [out, in / group]
    """

    name = "modelopt-int4"

    def refusal(self, encoding: Encoding, shape: Shape) -> str:
        return "" if shape[0] % 2 == 0 else f"the modelopt layout packs two rows to a byte, not {shape[0]}"

    def types(self, encoding: Encoding, shape: Shape) -> dict[str, TensorType]:
        assert isinstance(encoding, IntegerEncoding)
        scales = tensor(encoding.scale, (shape[0], encoding.groups(shape[1])))
        return {"weight": tensor(u8, (shape[0] // 2, shape[1])), "weight_scale": scales}

    def pack(self, encoding: Encoding, shape: Shape, codes: Codes) -> Tensors:
        nibbles = codes["codes"].view(np.uint8) & np.uint8(15)
        return {"weight": nibbles[::2] | (nibbles[1::2] << np.uint8(4)), "weight_scale": codes["scales"]}

    def unpack(self, encoding: Encoding, shape: Shape, tensors: Tensors) -> Codes:
        weight, nibbles = tensors["weight"], np.empty(shape, np.uint8)
        nibbles[::2], nibbles[1::2] = weight & np.uint8(15), weight >> np.uint8(4)
        # The sign of a nibble is its highest bit.
        return {"codes": (nibbles ^ np.uint8(8)).view(np.int8) - np.int8(8), "scales": tensors["weight_scale"]}


_INT4, _NUMBERS = TwoRows(), Numbers("modelopt", row=(), tensor=())
_NVFP4 = NVFP4("modelopt-nvfp4", packed="weight", unit="weight_scale_2", shape=(), inverse=False)


@dataclass(frozen=True)
class Algorithm:
    """A quant_algo: the matrices and activations that it is for, and how its matrices lie in tensors. `encoding`: the
    encoding of a matrix, by the types of its tensors."""

    holds: Callable[[Encoding], bool]
    activation: Activation | None
    form: Form
    encoding: Callable[[Mapping[str, TensorType]], Encoding]
    number: tuple[int, str] = (8, "float")


def _is_int4(encoding: Encoding) -> bool:
    return isinstance(encoding, IntegerEncoding) and (
        encoding.bits == 4 and encoding.symmetric and encoding.group > 0 and encoding.scale is not i8
    )


def _int4(stored: Mapping[str, TensorType]) -> Encoding:
    columns, groups = stored["weight"].shape[-1], stored["weight_scale"].shape[-1]
    assert isinstance(columns, int) and isinstance(groups, int)
    return IntegerEncoding(4, True, columns // max(1, groups), stored["weight_scale"].dtype)


def _int8(stored: Mapping[str, TensorType]) -> Encoding:
    return IntegerEncoding(8, True, 0, stored["weight_scale"].dtype)


def _nvfp4(stored: Mapping[str, TensorType]) -> Encoding:
    return FloatEncoding("e2m1", 16, "e4m3")


def _fp8(group: int) -> Callable[[Mapping[str, TensorType]], Encoding]:
    return lambda stored: FloatEncoding("e4m3", group, str(stored["weight_scale"].dtype))


ALGORITHMS: Final[dict[str, Algorithm]] = {
    "W4A16_AWQ": Algorithm(_is_int4, None, _INT4, _int4, (4, "int")),
    "W8A16": Algorithm(lambda e: is_int8(e, 0), None, _NUMBERS, _int8, (8, "int")),
    "W8A8_SQ_PER_CHANNEL": Algorithm(
        lambda e: is_int8(e, 0), Activation("int8", "tensor", True), _NUMBERS, _int8, (8, "int")
    ),
    "FP8": Algorithm(lambda e: is_fp8(e, TENSOR), Activation("e4m3", "tensor", True), _NUMBERS, _fp8(TENSOR)),
    "FP8_PER_CHANNEL_PER_TOKEN": Algorithm(
        lambda e: is_fp8(e, 0), Activation("e4m3", "token", False), _NUMBERS, _fp8(0)
    ),
    "NVFP4": Algorithm(is_nvfp4, Activation("e2m1", "block", True), _NVFP4, _nvfp4, (4, "float")),
    "W4A16_NVFP4": Algorithm(is_nvfp4, None, _NVFP4, _nvfp4, (4, "float")),
}


class ModelOpt(Layout):
    """Of a matrix [out, in], by quant_algo:

        W4A16_AWQ                   int4 in groups, sym    weight u8[out / 2, in], two rows a byte
                                                           weight_scale [out, in / group]
        W8A16                       int8 by row            weight i8[out, in], weight_scale [out]
        W8A8_SQ_PER_CHANNEL         static int8            the same, and input_scale f32[]
        FP8                         static FP8             weight f8e4m3[out, in], weight_scale [], input_scale f32[]
        FP8_PER_CHANNEL_PER_TOKEN   dynamic FP8            weight f8e4m3[out, in], weight_scale [out]
        W4A16_NVFP4                 NVFP4                  weight u8[out, in / 2], two numbers a byte
                                                           weight_scale f8e4m3[out, in / 16], weight_scale_2 f32[]
        NVFP4                       static NVFP4           the same, and input_scale f32[]

    Several of them together are MIXED_PRECISION. What AWQ divides out is folded into the layer before, so no
    pre_quant_scale is stored.
    """

    name = "modelopt"
    forms = (_INT4, _NUMBERS, _NVFP4)

    def form(self, scheme: Scheme) -> Form:
        return ALGORITHMS[_algorithm(scheme)].form

    def activation_refusal(self, activation: Activation) -> str:
        if any(algorithm.activation == activation for algorithm in ALGORITHMS.values()):
            return ""
        return f"the modelopt layout has int8 and NVFP4 activations under static scales, and FP8, not {activation}"

    def scale_tensors(self, activation: Activation, scale: float) -> Tensors:
        return {"input_scale": np.array(scale, np.float32)} if activation.static else {}

    def scale(self, activation: Activation, stored: Tensors) -> float:
        return float(stored["input_scale"].reshape(-1)[0])

    def files(self, names: Names) -> dict[str, Any]:
        layers = {module: _described(scheme) for module, scheme in names.encoded.items()}
        different = {str(layer): layer for layer in layers.values()}
        quantization: dict[str, Any] = {"quant_algo": _MIXED, "kv_cache_quant_algo": None}
        if len(different) == 1:
            quantization |= next(iter(different.values()))
        else:
            quantization["quantized_layers"] = layers
        quantization["exclude_modules"] = list(names.plain)
        producer = {"name": "modelopt", "version": _VERSION}
        groups: dict[str, Any] = {}
        for number, (key, layer) in enumerate(different.items()):
            modules = [module for module, other in layers.items() if str(other) == key]
            targets = ["Linear"] if len(different) == 1 else sorted(modules)
            groups[f"group_{number}"] = _group(layer) | {"targets": targets}
        flat = {
            "quant_method": "modelopt",
            **{
                key: value
                for key, value in quantization.items()
                if key not in ("kv_cache_quant_algo", "exclude_modules")
            },
            "config_groups": groups,
            "ignore": list(names.plain),
            "producer": producer,
        }
        return {CONFIG_FILE: {"producer": producer, "quantization": quantization}, "quantization_config": flat}

    def scheme(self, config: Mapping[str, Any], module: str, stored: Mapping[str, TensorType]) -> Scheme:
        said = config
        if config.get("quant_algo") == _MIXED:
            layers = config.get("quantized_layers")
            said = layers.get(module, {}) if isinstance(layers, dict) else {}
        name = said.get("quant_algo") if isinstance(said, dict) else None
        algorithm = ALGORITHMS.get(str(name))
        if algorithm is None:
            raise InputError(f"irlab reads the algorithms {', '.join(ALGORITHMS)} of ModelOpt, not {name}")
        if "pre_quant_scale" in stored:
            raise InputError("irlab reads no checkpoints whose inputs are scaled by a pre_quant_scale")
        return Scheme(algorithm.encoding(stored), algorithm.activation)


def _algorithm(scheme: Scheme) -> str:
    for name, algorithm in ALGORITHMS.items():
        if algorithm.holds(scheme.encoding) and algorithm.activation == scheme.activation:
            return name
    raise InputError(
        "the modelopt layout holds symmetric int4 in groups, int8 with a scale a row, FP8 with one for the tensor and "
        f"static activations or one a row and those of tokens, and NVFP4, not {scheme}"
    )


def _described(scheme: Scheme) -> dict[str, Any]:
    """What hf_quant_config.json says of a layer."""
    name = _algorithm(scheme)
    layer: dict[str, Any] = {"quant_algo": name}
    group = getattr(scheme.encoding, "group", 0)
    if group > 0:
        layer["group_size"] = group
    if name == "W4A16_AWQ":
        layer |= {"has_zero_point": False, "pre_quant_scale": False}
    return layer


def _group(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The group of config.json, in the words of compressed-tensors."""
    algorithm = ALGORITHMS[layer["quant_algo"]]
    bits, kind = algorithm.number
    numbers: dict[str, Any] = {"dynamic": False, "num_bits": bits, "type": kind}
    if "group_size" in layer:
        numbers["group_size"] = layer["group_size"]
    weights = numbers | ({"strategy": "channel"} if algorithm.form is _NUMBERS and layer["quant_algo"] != "FP8" else {})
    if algorithm.activation is None:
        return {"weights": weights}
    return {"input_activations": numbers | {"dynamic": not algorithm.activation.static}, "weights": weights}
