"""The layout of AutoAWQ, which vLLM, SGLang and transformers load (quant_method "awq", version "gemm")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ..encodings import Codes, Encoding, IntegerEncoding
from ..errors import InputError
from ..types import TensorType, i32, tensor
from .base import AnyArray, Layout, Names, Shape, Tensors, field, packed_words, unpacked_words, words
from .integers import codes_of_raw, group_size, integer_encoding, integer_refusal, raw_codes, raw_zeros

_ORDER: Final = np.array([0, 2, 4, 6, 1, 3, 5, 7])
"""Which of eight neighbouring outputs lies in each nibble of a word, from the lowest."""

_BITS: Final = 4


class AWQ(Layout):
    """Of a matrix [out, in], all tensors along out, eight outputs to a word in the order of `_ORDER`:

        qweight   i32[in, out / 8]
        qzeros    i32[groups, out / 8]
        scales    [groups, out]

    All codes have zero points; those of symmetric ones are 8, by which they are told when they are read.
    """

    name = "awq"

    def refusal(self, encoding: Encoding, shape: Shape) -> str:
        reason = integer_refusal(encoding, (_BITS,), self.name)
        if not reason and shape[0] % 8:
            reason = f"the awq layout packs 8 rows at a time, not the {shape[0]} of {list(shape)}"
        return reason

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

    def files(self, names: Names) -> dict[str, Any]:
        encoding = names.single(self.name)
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

    def encoding(self, config: Mapping[str, Any], module: str, stored: Mapping[str, TensorType]) -> Encoding:
        if field(config, "version", str, "gemm").lower() != "gemm":
            raise InputError(f"irlab reads AWQ checkpoints of the version gemm, not {config['version']}")
        # Whether all zero points are 8 cannot be told without reading them: zero points are kept.
        return integer_encoding(
            field(config, "bits", int), False, field(config, "group_size", int), stored["scales"].dtype
        )


def _interleaved(values: AnyArray) -> AnyArray:
    """[rows, out], the outputs in the order in which they are packed."""
    return np.ascontiguousarray(values.reshape(len(values), -1, 8)[..., _ORDER].reshape(values.shape))


def _in_order(values: AnyArray) -> AnyArray:
    """The inverse of `_interleaved`."""
    return np.ascontiguousarray(values.reshape(len(values), -1, 8)[..., np.argsort(_ORDER)].reshape(values.shape))
