"""FP8 and NVFP4 activations in TensorRT: Quantize and DynamicQuantize layers, which the builder takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_llama import Llama
from trt_networks import check, legal, network_of

from irlab import Context, GraphBuilder, Module
from irlab.backends.tensorrt import TensorRT, library
from irlab.backends.tensorrt.description import describe
from irlab.calibration import Sample
from irlab.encodings import TENSOR, Encoding, FloatEncoding
from irlab.errors import LegalityError
from irlab.ops import nn
from irlab.passmgr import PassManager
from irlab.schedule import build_pipeline
from irlab.types import tensor
from irlab.weights import Encode, Random, WeightSymbol

if library.missing():
    pytest.skip(library.missing(), allow_module_level=True)

ROW, WHOLE = (FloatEncoding("e4m3", group, "f32") for group in (0, TENSOR))
NVFP4 = FloatEncoding("e2m1", 16, "e4m3")
BLOCKS = {"element": "e2m1", "per": "block", "scale": 0.004}
CASES: list[tuple[dict[str, Any], Encoding, str]] = [
    ({}, ROW, "sm89"),
    ({"per": "tensor"}, WHOLE, "sm89"),
    ({"per": "tensor", "scale": 0.02}, WHOLE, "sm89"),
    (BLOCKS, NVFP4, "sm120"),
]
SIZES = ("batch:1:2:4", "seq:1:5:16")


def product(options: dict[str, Any], encoding: Encoding, dtype: str = "f32", rank: int = 3) -> Module:
    b = GraphBuilder()
    lead = ("batch", "seq", 1)[: rank - 1]
    x = nn.quantize_activation_float(b.input("x", dtype, (*lead, 64)), **options)
    codes = Encode(Random(tensor(dtype, (32, 64)), 1), encoding)
    b.output(y=nn.linear(x, b.weight(WeightSymbol("w", codes)), b.random_weight("bias", dtype, (32,))))
    return b.module()


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("options", "encoding", "target"), CASES, ids=str)
def test_network_and_engine(
    options: dict[str, Any], encoding: Encoding, target: str, dtype: str, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(0.2, 1, (2, 5, 64)).astype(np.float32 if dtype == "f32" else np.float16)
    x[1] *= 5
    # In half precision a number between two floats may go to the other one.
    tolerance = 1e-4 if dtype == "f32" else 3e-2
    check(product(options, encoding, dtype), {"x": x}, tolerance, tmp_path, (target,), sizes=SIZES)


def test_layers_hold_the_scale_of_the_tensor() -> None:
    for options, encoding, kind in ((CASES[2][0], WHOLE, "QUANTIZE"), (BLOCKS, NVFP4, "DYNAMIC_QUANTIZE")):
        network = network_of(legal(product(options, encoding), sizes=SIZES), sizes=SIZES)
        rows = describe(network)["layers"]
        (found,) = (row for row in rows if row["kind"] == kind)
        assert found["outputs"][0]["type"] == ("fp8" if kind == "QUANTIZE" else "fp4")
        constants = {row["outputs"][0]["name"]: row["constant"] for row in rows if "constant" in row}
        assert constants[found["inputs"][1]]["values"] == pytest.approx(options["scale"])
        network.close()


def test_what_gpus_lack_is_refused_by_name() -> None:
    for case, target, kind in ((CASES[2], "sm80", "fp8"), (CASES[3], "sm89", "fp4")):
        with pytest.raises(LegalityError, match=f"{target} .* cannot hold {kind}"):
            legal(product(case[0], case[1]), targets=(target,), sizes=SIZES)


def test_nvfp4_of_four_axes_is_refused() -> None:
    module = product(BLOCKS, NVFP4, rank=4)
    rows = {row.what: row for row in TensorRT(sizes=SIZES).plan(module)}
    assert rows["nn.quantize_activation_float x 1"].holding == "none"
    with pytest.raises(LegalityError, match="does not compute in f8e4m3"):
        legal(module, sizes=SIZES)


@pytest.mark.parametrize(("scheme", "target"), [("fp8", "sm89"), ("nvfp4", "sm120")])
def test_a_decoder_builds_from_the_codes_and_scales_of_the_ir(scheme: str, target: str, tmp_path: Path) -> None:
    module = Llama(layers=1).module()
    ids = np.random.default_rng(0).integers(0, 32, (8, 24))
    ctx = Context(calibration=Sample(ids, length=24), cache_dir=tmp_path / "cache", targets=("tensorrt",))
    pipeline = f"quantize-activations{{scheme={scheme} mode=static}}"
    PassManager(build_pipeline(pipeline), ctx).run(module)
    inputs = {
        "input_ids": np.array([[3, 7, 9, 20, 4]]),
        "position_ids": np.arange(5)[None],
        "attention_mask": np.ones((1, 5), np.int64),
    }
    check(module, inputs, 5e-2, tmp_path, (target,), max_past=15)
