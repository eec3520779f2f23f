"""The layout of AutoGPTQ and GPTQModel, which vLLM, SGLang and transformers load (quant_method "gptq")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ..encodings import Codes, Encoding, IntegerEncoding
from ..errors import InputError
from ..types import TensorType, i32, tensor
from .base import Form, Layout, Names, Scheme, Shape, Tensors, field, packed_words, unpacked_words, words
from .integers import codes_of_raw, group_size, integer_encoding, raw_codes, raw_zeros, require_integers

_BITS: Final = (2, 3, 4, 8)


class GPTQForm(Form):
    """Of a matrix [out, in]:

        qweight   i32[in * bits / 32, out]        the codes of a column as a stream of bits, least significant first
        qzeros    i32[groups, out * bits / 32]    zero points, likewise along out; in the first format less 1
        scales    [groups, out]
        g_idx     i32[in]                         the group of each column: in order

    Symmetric codes have the zero point 2^(bits - 1), and checkpoint_format "gptq". Asymmetric ones are written as
    "gptq_v2", which stores zero points as they are: less 1, the zero point 0 could not be said.
    """

    name = "gptq"

    def refusal(self, encoding: Encoding, shape: Shape) -> str:
        if shape[0] % 32 or shape[1] % 32:
            return f"the gptq layout packs 32 rows and 32 columns at a time, not those of {list(shape)}"
        return ""

    def types(self, encoding: Encoding, shape: Shape) -> dict[str, TensorType]:
        assert isinstance(encoding, IntegerEncoding)
        out, columns = shape
        groups = encoding.groups(shape[1])
        return {
            "g_idx": tensor(i32, (columns,)),
            "qweight": tensor(i32, (words(columns, encoding.bits), out)),
            "qzeros": tensor(i32, (groups, words(out, encoding.bits))),
            "scales": tensor(encoding.scale, (groups, out)),
        }

    def pack(self, encoding: Encoding, shape: Shape, codes: Codes) -> Tensors:
        assert isinstance(encoding, IntegerEncoding)
        zeros = raw_zeros(encoding, codes).T
        if encoding.symmetric:
            zeros = zeros - np.uint8(1)
        return {
            "g_idx": _group_of_columns(encoding, shape),
            "qweight": np.ascontiguousarray(packed_words(raw_codes(encoding, codes), encoding.bits).T),
            "qzeros": packed_words(zeros, encoding.bits),
            "scales": np.ascontiguousarray(codes["scales"].T),
        }

    def unpack(self, encoding: Encoding, shape: Shape, tensors: Tensors) -> Codes:
        assert isinstance(encoding, IntegerEncoding)
        if not np.array_equal(tensors["g_idx"], _group_of_columns(encoding, shape)):
            raise InputError("g_idx gives columns to groups out of order (desc_act)", "quantise without desc_act")
        raw = unpacked_words(tensors["qweight"].T, encoding.bits, shape[1])
        zeros = unpacked_words(tensors["qzeros"], encoding.bits, shape[0]).T
        if encoding.symmetric and (zeros != (1 << (encoding.bits - 1)) - 1).any():
            raise InputError("a zero point of symmetric codes is not in their middle")
        return codes_of_raw(encoding, raw, tensors["scales"].T, zeros)


class GPTQ(Layout):
    """Integers in the form of GPTQForm, all of one encoding."""

    name = "gptq"
    forms = (GPTQForm(),)

    def form(self, scheme: Scheme) -> Form:
        require_integers(scheme, _BITS, self.name)
        return self.forms[0]

    def files(self, names: Names) -> dict[str, Any]:
        encoding = names.single(self.name).encoding
        assert isinstance(encoding, IntegerEncoding)
        return {
            "quantization_config": {
                "quant_method": "gptq",
                "checkpoint_format": "gptq" if encoding.symmetric else "gptq_v2",
                "bits": encoding.bits,
                "group_size": group_size(encoding),
                "sym": encoding.symmetric,
                "desc_act": False,
                "lm_head": "lm_head" in names.encoded,
                # GPTQModel's way to leave modules alone: regular expressions after "-:".
                "dynamic": {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in names.plain if name != "lm_head"},
                "meta": {"quantizer": ["irlab"]},
            }
        }

    def scheme(self, config: Mapping[str, Any], module: str, stored: Mapping[str, TensorType]) -> Scheme:
        symmetric, version = field(config, "sym", bool, True), config.get("checkpoint_format", "gptq")
        if symmetric != (version == "gptq"):
            raise InputError(
                f"irlab reads symmetric codes of the format gptq and asymmetric ones of gptq_v2, not sym={symmetric} "
                f"of {version}"
            )
        bits, group = field(config, "bits", int), field(config, "group_size", int)
        return Scheme(integer_encoding(bits, symmetric, group, stored["scales"].dtype))


def _group_of_columns(encoding: IntegerEncoding, shape: Shape) -> np.ndarray[Any, np.dtype[np.int32]]:
    columns = shape[1]
    return (np.arange(columns) // (encoding.group or columns)).astype(np.int32)
