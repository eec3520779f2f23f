"""Rounded activations in TensorRT: Quantize and Dequantize around integers, which the builder takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_llama import Llama
from trt_networks import check, legal, network_of

import irlab
from irlab import GraphBuilder, Module
from irlab.backends.tensorrt import TensorRT, library
from irlab.backends.tensorrt.description import describe
from irlab.encodings import IntegerEncoding
from irlab.ops import nn
from irlab.types import f32, tensor
from irlab.weights import Encode, Random, WeightSymbol

if library.missing():
    pytest.skip(library.missing(), allow_module_level=True)

ROUNDINGS: list[dict[str, Any]] = [
    {},
    {"zero": -112},
    {"dynamic_zero": True},
    {"per": "tensor"},
    {"per": "tensor", "scale": 0.02},
    {"per": "tensor", "scale": 0.02, "zero": -40},
]


SIZES = ("batch:1:2:4", "seq:1:5:16")


def product(options: dict[str, Any], dtype: str = "f32") -> Module:
    b = GraphBuilder()
    x = nn.quantize_activation(b.input("x", dtype, ("batch", "seq", 64)), **options)
    codes = Encode(Random(tensor(dtype, (32, 64)), 1), IntegerEncoding(8, True, 0, f32))
    b.output(y=nn.linear(x, b.weight(WeightSymbol("w", codes)), b.random_weight("bias", dtype, (32,))))
    return b.module()


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("options", ROUNDINGS, ids=str)
def test_network_and_engine(options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0.2, 1, (2, 5, 64)).astype(np.float32 if dtype == "f32" else np.float16)
    x[1] *= 30
    # In half precision a number between two integers may go to the other one.
    tolerance = 1e-4 if dtype == "f32" else 2e-2
    check(product(options, dtype), {"x": x}, tolerance, tmp_path, ("sm80", "sm89"), sizes=SIZES)


def test_the_rounded_numbers_are_near_the_graph_s() -> None:
    module = product({})
    x = np.random.default_rng(0).normal(size=(1, 5, 64)).astype(np.float32)
    found = check(module, {"x": x}, sizes=SIZES)["y"]
    np.testing.assert_allclose(found, irlab.evaluate(module, {"x": x})["y"].numpy(), atol=2e-3)


def test_layers_are_quantize_and_dequantize_with_the_scale_s_constant() -> None:
    options = {"per": "tensor", "scale": 0.02}
    network = network_of(legal(product(options), sizes=SIZES), sizes=SIZES)
    described = describe(network)
    assert described["layer_counts"]["QUANTIZE"] == 1 and described["layer_counts"]["DEQUANTIZE"] == 2
    (quantize,) = (row for row in described["layers"] if row["kind"] == "QUANTIZE")
    assert quantize["outputs"][0]["type"] == "int8"
    constants = {row["outputs"][0]["name"]: row["constant"] for row in described["layers"] if "constant" in row}
    assert constants[quantize["inputs"][1]]["values"] == pytest.approx(0.02)
    network.close()


def test_plan() -> None:
    rows = {row.what: row for row in TensorRT(sizes=SIZES).plan(product({}))}
    row = rows["nn.quantize_activation x 1"]
    assert row.holding == "native" and "behind products" in row.note


def test_a_decoder_of_8_bits_builds(tmp_path: Path) -> None:
    module = irlab.run(Llama(layers=1).module(), "quantize-activations", targets=("tensorrt", "onnx"))
    inputs = {
        "input_ids": np.array([[3, 7, 9, 20, 4]]),
        "position_ids": np.arange(5)[None],
        "attention_mask": np.ones((1, 5), np.int64),
    }
    check(module, inputs, 2e-2, tmp_path, ("sm80",), max_past=15)
