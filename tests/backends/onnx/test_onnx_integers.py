"""Products of integers in ONNX Runtime: it computes what the rounded graph computes, in the ops that are fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_files import op_types, run_directory, write
from small_llama import Llama

import irlab
from irlab import GraphBuilder, Module
from irlab.backends.onnx import ONNX
from irlab.decoder import logits
from irlab.encodings import IntegerEncoding
from irlab.ops import nn
from irlab.parity import check_parity
from irlab.types import f32, tensor
from irlab.weights import Encode, Random, WeightSymbol

ROUNDINGS: list[tuple[dict[str, Any], str]] = [
    ({}, "QuantizeLinear"),
    ({"zero": -112}, "QuantizeLinear"),
    ({"dynamic_zero": True}, "QuantizeLinear"),
    ({"per": "tensor"}, "QuantizeLinear"),
    ({"per": "tensor", "dynamic_zero": True}, "DynamicQuantizeLinear"),
    ({"per": "tensor", "scale": 0.02}, "QuantizeLinear"),
    ({"per": "tensor", "scale": 0.02, "zero": -40}, "QuantizeLinear"),
]


ROWS = IntegerEncoding(8, True, 0, f32)


def products(options: dict[str, Any], encoding: IntegerEncoding = ROWS) -> Module:
    b = GraphBuilder()
    x = nn.quantize_activation(b.input("x", "f32", ("batch", "seq", 64)), **options)
    weights = [b.weight(WeightSymbol(n, Encode(Random(tensor("f32", (r, 64)), r), encoding))) for n, r in SIZES.items()]
    b.output(y=nn.linear(x, weights[0], b.random_weight("bias", "f32", (24,))), z=nn.linear(x, weights[1]))
    return b.module()


SIZES = {"v": 24, "w": 17}


@pytest.mark.parametrize("profile", ["fast", "portable"])
@pytest.mark.parametrize(("options", "quantizer"), ROUNDINGS, ids=[str(o) for o, _ in ROUNDINGS])
def test_the_runtime_multiplies_these_integers(
    options: dict[str, Any], quantizer: str, profile: str, tmp_path: Path
) -> None:
    module = products(options)
    x = np.random.default_rng(0).normal(0.2, 1, (2, 7, 64)).astype(np.float32)
    x[1] *= 30
    expected = irlab.evaluate(module, {"x": x})
    write(module, tmp_path / "out", profile=profile)
    found = run_directory(tmp_path / "out", {"x": x})
    for name, wanted in expected.items():
        # Sums of integers are exact. A number that lies between two integers may go to the other one.
        apart = np.abs(found[name] - wanted.numpy())
        assert np.median(apart) < 1e-5 * float(wanted.abs().max())
        assert apart.max() < 5e-3 * float(wanted.abs().max())
    types = op_types(tmp_path / "out")
    assert quantizer in types
    product = (
        "MatMulIntegerToFloat" if profile == "fast" else "MatMul" if quantizer == "QuantizeLinear" else "MatMulInteger"
    )
    assert product in types and types.isdisjoint({"MatMulNBits", "Gemm"})


def test_the_input_is_rounded_once_for_all_that_read_it(tmp_path: Path) -> None:
    import onnx

    write(products({"per": "tensor", "dynamic_zero": True}), tmp_path / "out")
    nodes = onnx.load(tmp_path / "out/model.onnx", load_external_data=False).graph.node
    assert [node.op_type for node in nodes].count("DynamicQuantizeLinear") == 1
    assert [node.op_type for node in nodes].count("MatMulIntegerToFloat") == 2


def test_weights_in_groups_are_multiplied_as_before(tmp_path: Path) -> None:
    write(products({}, IntegerEncoding(8, True, 32, f32)), tmp_path / "out")
    assert "MatMulNBits" in op_types(tmp_path / "out") and "Round" in op_types(tmp_path / "out")


def test_plan_tells_products_from_mere_rounding() -> None:
    rows = ONNX().plan(products({}))
    assert any(row.note.startswith("products of integers") for row in rows)
    assert any(row.what == "nn.quantize_activation x 1" and row.holding == "native" for row in rows)
    rows = ONNX().plan(products({}, IntegerEncoding(4, True, 32, f32)))
    assert any("quantize_activation" in row.what and row.holding == "emulated" and "gains" in row.note for row in rows)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("options", ["", "per=tensor sym=false"])
def test_decoders_pass_the_parity_gate(dtype: str, options: str, tmp_path: Path) -> None:
    module = irlab.run(Llama(dtype=dtype, tied=True).module(), f"quantize-activations{{embeddings=int8 {options}}}")
    legal = write(module, tmp_path / "out")
    assert not legal.graph.find(nn.Linear)[0].weight.type.dtype.name.startswith("bf16")
    result = check_parity(ONNX(), legal, tmp_path / "out")
    assert not result.skipped and not result.failure and result.kl < 1e-4
    # One linear for q, k and v: their integers are joined.
    assert any("_and_" in name for name in legal.weights)
    assert np.isfinite(logits(module, [1, 2, 3])).all()


def test_what_is_rounded_otherwise_shows(tmp_path: Path) -> None:
    """The file follows the graph: another scale gives other numbers."""
    x = {"x": np.random.default_rng(0).normal(size=(1, 4, 64)).astype(np.float32)}
    found = []
    for i, scale in enumerate((0.02, 0.05)):
        write(products({"per": "tensor", "scale": scale}), tmp_path / str(i))
        found.append(run_directory(tmp_path / str(i), x)["y"])
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_smoothed_and_rounded_from_the_command_line(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 1024, (4, 64))
    module = irlab.run(
        irlab.run(irlab.load("demo"), "fuse"),
        "smooth-quant,quantize-activations{embeddings=int8},kv-cache",
        targets=("onnx",),
        calibration=ids,
        calibration_length=64,
        cache_dir=str(tmp_path / "cache"),
    )
    legal = write(module, tmp_path / "out")
    result = check_parity(ONNX(), legal, tmp_path / "out")
    assert not result.failure and result.kl < 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"per": "tensor", "scale": 0.02}, {"element": "e2m1", "per": "block", "scale": 0.004}], ids=str
)
def test_small_floats_are_rounded_in_floats(options: dict[str, Any], tmp_path: Path) -> None:
    b = GraphBuilder()
    x = nn.quantize_activation_float(b.input("x", "f32", ("batch", "seq", 64)), **options)
    b.output(y=nn.linear(x, b.random_weight("w", "f32", (32, 64), 1)))
    module, given = b.module(), np.random.default_rng(0).normal(size=(2, 7, 64)).astype(np.float32)
    write(module, tmp_path / "out")
    found = run_directory(tmp_path / "out", {"x": given})["y"]
    np.testing.assert_allclose(found, irlab.evaluate(module, {"x": given})["y"].numpy(), atol=1e-5)
    rows = ONNX().plan(module)
    assert any("quantize_activation_float" in row.what and row.holding == "emulated" for row in rows)
