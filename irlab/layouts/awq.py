"""The layout of AutoAWQ, which vLLM, SGLang and transformers load (quant_method "awq", version "gemm")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ..encodings import Codes, Encoding, IntegerEncoding
from ..errors import InputError
from ..types import TensorType, i32, tensor
from .base import AnyArray, Form, Layout, Names, Scheme, Shape, Tensors, field, packed_words, unpacked_words, words
from .integers import codes_of_raw, group_size, integer_encoding, raw_codes, raw_zeros, require_integers

_ORDER: Final = np.array([0, 2, 4, 6, 1, 3, 5, 7])
"""Which of eight neighbouring outputs lies in each nibble of a word, from the lowest."""

_BITS: Final = 4


class AWQForm(Form):
    """Of a matrix [out, in], all tensors along out, eight outputs to a word in the order of `_ORDER`:

        qweight   i32[in, out / 8]
        qzeros    i32[groups, out / 8]
        scales    [groups, out]

    All codes have zero points; those of symmetric ones are 8, by which they are told when they are read.
    """

    name = "awq"

    def refusal(self, encoding: Encoding, shape: Shape) -> str:
        return (
            "" if shape[0] % 8 == 0 else f"the awq layout packs 8 rows at a time, not the {shape[0]} of {list(shape)}"
        )

    def types(self, encoding: Encoding, shape: Shape) -> dict[str, TensorType]:
        assert isinstance(encoding, IntegerEncoding)
        out, columns = shape
        groups = encoding.groups(shape[1])
        return {
            "qweight": tensor(i32, (columns, words(out, _BITS))),
            "qzeros": tensor(i32, (groups, words(out, _BITS))),
            "scales": tensor(encoding.scale, (groups, out)),
        }

    def pack(self, encoding: Encoding, shape: Shape, codes: Codes) -> Tensors:
        assert isinstance(encoding, IntegerEncoding)
        return {
            "qweight": packed_words(_interleaved(raw_codes(encoding, codes).T), _BITS),
            "qzeros": packed_words(_interleaved(raw_zeros(encoding, codes).T), _BITS),
            "scales": np.ascontiguousarray(codes["scales"].T),
        }

    def unpack(self, encoding: Encoding, shape: Shape, tensors: Tensors) -> Codes:
        assert isinstance(encoding, IntegerEncoding)
        raw, zeros = (_in_order(unpacked_words(tensors[part], _BITS, shape[0])).T for part in ("qweight", "qzeros"))
        return codes_of_raw(encoding, raw, tensors["scales"].T, zeros)


class AWQ(Layout):
    """Integers of 4 bits in the form of AWQForm, all of one encoding."""

    name = "awq"
    forms = (AWQForm(),)

    def form(self, scheme: Scheme) -> Form:
        require_integers(scheme, (_BITS,), self.name)
        return self.forms[0]

    def files(self, names: Names) -> dict[str, Any]:
        encoding = names.single(self.name).encoding
        assert isinstance(encoding, IntegerEncoding)
        return {
            "quantization_config": {
                "quant_method": "awq",
                "version": "gemm",
                "bits": _BITS,
                "group_size": group_size(encoding),
                "zero_point": True,
                "modules_to_not_convert": list(names.plain) or None,
            }
        }

    def scheme(self, config: Mapping[str, Any], module: str, stored: Mapping[str, TensorType]) -> Scheme:
        if field(config, "version", str, "gemm").lower() != "gemm":
            raise InputError(f"irlab reads AWQ checkpoints of the version gemm, not {config['version']}")
        # Whether all zero points are 8 cannot be told without reading them: zero points are kept.
        bits, group = field(config, "bits", int), field(config, "group_size", int)
        return Scheme(integer_encoding(bits, False, group, stored["scales"].dtype))


def _interleaved(values: AnyArray) -> AnyArray:
    """[rows, out], the outputs in the order in which they are packed."""
    return np.ascontiguousarray(values.reshape(len(values), -1, 8)[..., _ORDER].reshape(values.shape))


def _in_order(values: AnyArray) -> AnyArray:
    """The inverse of `_interleaved`."""
    return np.ascontiguousarray(values.reshape(len(values), -1, 8)[..., np.argsort(_ORDER)].reshape(values.shape))
