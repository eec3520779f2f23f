"""Encoded weights: the same codes in the network, the same numbers decoded, and an engine as small as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_llama import Llama
from trt_networks import check, legal, network_of

from irlab import GraphBuilder
from irlab.backends.tensorrt import codes
from irlab.backends.tensorrt.description import describe
from irlab.backends.tensorrt.evaluator import Evaluator
from irlab.backends.tensorrt.network import build_to
from irlab.encodings import TENSOR, IntegerEncoding
from irlab.ir import Module
from irlab.ops import nn
from irlab.types import bf16, f16, f32, i8, tensor
from irlab.weights import Encode, Random, WeightSymbol

ENCODINGS = {
    "int4": (IntegerEncoding(4, True, 32, f16), "int4"),
    "int4 in rows of 128": (IntegerEncoding(4, True, 128, bf16), "int4"),
    "int4 asymmetric": (IntegerEncoding(4, False, 32, f16), "int8"),
    "int3": (IntegerEncoding(3, True, 32, f16), "int8"),
    "int8": (IntegerEncoding(8, True, 32, f32), "int8"),
    "int8 a row": (IntegerEncoding(8, True, 0, f32), "int8"),
    "int4 with double scales": (IntegerEncoding(4, True, 32, i8), "int4"),
    "int8 of a tensor": (IntegerEncoding(8, True, TENSOR, f32), "int8"),
    "int4 a row": (IntegerEncoding(4, True, 0, f32), "int4"),
}


def linear(encoding: IntegerEncoding, rows: int = 48, columns: int = 128, dtype: str = "f32") -> Module:
    b = GraphBuilder()
    x = b.input("x", dtype, ("batch", columns))
    symbol = WeightSymbol("w", Encode(Random(tensor("f32", (rows, columns)), 1), encoding))
    b.output(y=nn.linear(x, b.weight(symbol)))
    return b.module()


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_network_decodes_the_same_numbers(name: str, tmp_path: Path) -> None:
    """A linear layer fed the identity gives the weight back, to the bit."""
    encoding, kind = ENCODINGS[name]
    module = legal(linear(encoding))
    network = network_of(module)
    assert network.low_bit == {"w": kind}
    y = Evaluator(network).run({"x": np.eye(128, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(y.T, module.weights["w"].recipe.read())
    stored = describe(network)["constant_bytes"]
    assert stored[kind] == 48 * 128 * (4 if kind == "int4" else 8) // 8
    assert build_to(network, ("sm80", "sm89", "sm120"), tmp_path / "e") > 1000
    network.close()


def test_scales_that_are_negative_and_odd_columns() -> None:
    packed = codes.nibbles(np.array([[-8, 7, 3], [0, -1, 5]], np.int8))
    np.testing.assert_array_equal(packed, [[0x78, 0x03], [0xF0, 0x05]])


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_decoders(precision: str, tmp_path: Path) -> None:
    model = Llama(encoding=IntegerEncoding(4, True, 32, f16), tied=True)
    ids = np.array([[3, 7, 9, 20, 4], [1, 2, 3, 4, 5]])
    inputs = {"input_ids": ids, "position_ids": np.arange(5)[None].repeat(2, 0), "attention_mask": np.ones((2, 5), int)}
    tolerance = {"fp16": 2e-2, "bf16": 8e-2, "fp32": 2e-5}[precision]
    check(model.module(), inputs, tolerance, tmp_path, precision=precision, max_past=31)


def test_the_engine_is_as_small_as_the_codes(tmp_path: Path) -> None:
    """An engine holds 4-bit codes as 4 bits: a matrix of a million takes about 0.6 MB, not the 2 MB of half."""
    sizes = {}
    for bits in (4, 8):
        module = legal(linear(IntegerEncoding(bits, True, 32, f16), 1024, 1024, "f16"))
        network = network_of(module)
        sizes[bits] = build_to(network, ("sm80",), tmp_path / "e")
        network.close()
    assert sizes[4] < 0.8e6 and sizes[8] < 1.4e6


def test_an_encoded_embedding_stays_encoded(tmp_path: Path) -> None:
    b = GraphBuilder()
    ids = b.input("ids", "i64", ("batch", "seq"))
    symbol = WeightSymbol("w", Encode(Random(tensor("f32", (4000, 256)), 1), IntegerEncoding(4, True, 32, f16)))
    b.output(y=nn.embedding(ids, b.weight(symbol)))
    module = legal(b.module(), precision="fp16")
    network = network_of(module)
    y = Evaluator(network).run({"ids": np.array([[3, 3999]])})["y"]
    np.testing.assert_array_equal(y[0], symbol.recipe.read()[[3, 3999]].astype(np.float16))
    assert build_to(network, ("sm80",), tmp_path / "e") < 1.2e6
    network.close()
