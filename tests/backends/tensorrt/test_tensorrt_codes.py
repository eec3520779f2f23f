"""Encoded weights: the same codes in the network, the same numbers decoded, and an engine as small as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_llama import Llama
from trt_networks import check, legal, network_of

from irlab import GraphBuilder
from irlab.backends.tensorrt import TensorRT, codes
from irlab.backends.tensorrt.description import describe
from irlab.backends.tensorrt.evaluator import Evaluator
from irlab.backends.tensorrt.network import build_to
from irlab.encodings import TENSOR, Encoding, FloatEncoding, IntegerEncoding
from irlab.errors import LegalityError
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
    "fp8": (FloatEncoding("e4m3", 0, "f32"), "fp8"),
    "fp8 of a tensor": (FloatEncoding("e4m3", TENSOR, "f16"), "fp8"),
    "mxfp8": (FloatEncoding("e4m3", 32, "e8m0"), "fp8"),
    "nvfp4": (FloatEncoding("e2m1", 16, "e4m3"), "fp4"),
    "mxfp4": (FloatEncoding("e2m1", 32, "e8m0"), "fp4"),
    "int4 a row": (IntegerEncoding(4, True, 0, f32), "int4"),
}


def linear(encoding: Encoding, rows: int = 48, columns: int = 128, dtype: str = "f32") -> Module:
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
    assert 0 <= stored[kind] - 48 * 128 * int(kind[-1]) // 8 <= 48 * 8
    targets = {"fp8": ("sm89", "sm120"), "fp4": ("sm120",)}.get(kind, ("sm80", "sm89", "sm120"))
    assert build_to(network, targets, tmp_path / "e") > 1000
    network.close()


def test_scales_that_are_negative_and_odd_columns() -> None:
    packed = codes.nibbles(np.array([[-8, 7, 3], [0, -1, 5]], np.int8).view("u1"))
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


def test_nvfp4_that_was_joined_has_a_scale_for_each_row() -> None:
    from irlab.weights import Concat

    encoding = FloatEncoding("e2m1", 16, "e4m3")
    parts = tuple(Encode(Random(tensor("f32", (8, 64)), seed), encoding) for seed in (1, 2))
    b = GraphBuilder()
    x = b.input("x", "f32", ("batch", 64))
    b.output(y=nn.linear(x, b.weight(WeightSymbol("w", Concat(parts, 0)))))
    module = legal(b.module())
    network = network_of(module)
    y = Evaluator(network).run({"x": np.eye(64, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(y.T, module.weights["w"].recipe.read())
    network.close()


@pytest.mark.parametrize(
    ("encoding", "target", "lacking"),
    [(FloatEncoding("e4m3", 0, "f32"), "sm80", "fp8"), (FloatEncoding("e2m1", 16, "e4m3"), "sm89", "fp4")],
)
def test_a_capability_that_cannot_hold_them(encoding: Encoding, target: str, lacking: str) -> None:
    words = rf"{target} .* cannot hold {lacking}, the type of weight 'w' .*targets with {lacking}: .*sm120"
    with pytest.raises(LegalityError, match=words):
        legal(linear(encoding), targets=(target,))
    assert "sm120" in TensorRT().chosen_targets(linear(encoding))
    assert target not in TensorRT().chosen_targets(linear(encoding))
    rows = {row.what: row for row in TensorRT(targets=(target,)).plan(linear(encoding))}
    assert rows["targets"].holding == "none"


def test_an_encoding_that_has_no_dequantize() -> None:
    with pytest.raises(LegalityError, match=r"weight 'w' is f<e3m2.*quantize\{scheme=int4\}"):
        legal(linear(FloatEncoding("e3m2", 32, "e8m0")))
