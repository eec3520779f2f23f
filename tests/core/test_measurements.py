"""What is measured of a run: the errors of weights, in the real runtime, and the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import irlab_opt

import irlab
from irlab import Context, Module
from irlab.calibration import Sample
from irlab.passmgr import PassManager, PassRecord
from irlab.quality import quality
from irlab.schedule import build_pipeline
from irlab.types import bf16, f32
from irlab.weight_errors import MeasureWeights

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def module() -> Module:
    return irlab.run(irlab.load("demo"), "fuse")


def measured(module: Module, pipeline: str, cache: Path, ids: np.ndarray | None = None) -> list[PassRecord]:
    ctx = Context(calibration=None if ids is None else Sample(ids, length=32), cache_dir=cache)
    return PassManager(build_pipeline(pipeline), ctx, [MeasureWeights(ctx)]).run(module.clone())


@pytest.mark.parametrize("method", ["rtn", "hqq"])
def test_weights_that_backends_compute_are_measured(module: Module, tmp_path: Path, method: str) -> None:
    pipeline = f"quantize{{scheme=int4 method={method} embeddings=int8}}"
    (record,) = measured(module, pipeline, tmp_path)
    assert len(record.layers) == 29 and "output_error" not in record.layers[UP]
    before = np.array(module.weights[UP].recipe.read()).astype(np.float64)
    after = irlab.run(module, pipeline).weights[UP].recipe.read()
    wanted = np.linalg.norm(before - after) / np.linalg.norm(before)
    assert record.layers[UP]["weight_error"] == pytest.approx(wanted, rel=1e-5)
    assert record.layers[UP]["bits"] == 4.5 and record.layers["model.embed_tokens.weight"]["bits"] == 8.5


def test_of_two_factors_the_product_is_measured(module: Module, tmp_path: Path) -> None:
    pipeline = "low-rank{method=svd rank=64}"
    (record,) = measured(module, pipeline, tmp_path)
    before = np.array(module.weights[UP].recipe.read()).astype(np.float64)
    new = irlab.run(module, pipeline).weights
    a, b = (np.array(new[f"{UP}.{side}"].recipe.read()).astype(np.float64) for side in "ab")
    assert len(record.layers) == 28 and not any(name.endswith((".a", ".b")) for name in record.layers)
    wanted = np.linalg.norm(before - b @ a) / np.linalg.norm(before)
    assert record.layers[UP]["weight_error"] == pytest.approx(wanted, rel=1e-2) and wanted > 0.1
    assert record.layers[UP]["bits"] == pytest.approx(16 * 64 * (256 + 768) / (256 * 768))


def test_half_precision_is_measured_in_f32_on_the_cpu(module: Module) -> None:
    """What is measured is what the weights say: no activation is rounded."""
    ids = np.random.default_rng(0).integers(0, 1024, (4, 32))
    batches = [{"input_ids": ids}]
    wide = irlab.run(module, "cast{dtype=f32}")
    assert module.graph.outputs["logits"].type.dtype is bf16 and wide.graph.outputs["logits"].type.dtype is f32
    found = quality(module, batches, Context(), wide)
    assert found.perplexity == pytest.approx(quality(wide, batches, Context()).perplexity, rel=1e-6)
    assert found.kl == pytest.approx(0, abs=1e-6) and found.top1 == 1


def test_with_calibration_data_the_errors_of_outputs_too(module: Module, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 1024, (8, 32))
    rounded, kept = measured(module, "quantize{scheme=int4},quantize{scheme=int8}", tmp_path, ids)
    (compensated,) = measured(module, "quantize{scheme=int4 method=gptq}", tmp_path, ids)
    assert not kept.layers, "nothing was left to change"
    assert set(rounded.layers) == set(compensated.layers)
    assert compensated.layers[UP]["output_error"] < 0.9 * rounded.layers[UP]["output_error"]


@pytest.mark.parametrize("target", ["onnx", "onnx{layout=plain}", "gguf"])
def test_a_file_is_evaluated_in_its_runtime(tmp_path: Path, target: str) -> None:
    ids = tmp_path / "ids.npy"
    np.save(ids, np.stack(irlab.decoder.sample(irlab.load("demo"), 4, 64, seed=5)))
    name = target.partition("{")[0]
    report = tmp_path / "report.json"
    done = irlab_opt(
        "demo", "-p", "fuse,quantize{scheme=int4 embeddings=int8},kv-cache", "--emit", target, "-o", tmp_path / "out",
        "--no-parity", "--eval", ids, "--eval-in", name, "--report", report,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    quality = json.loads(report.read_text())["quality"]
    (inside,) = [found for what, found in quality.items() if what.startswith("after quantize")]
    (outside,) = [found for what, found in quality.items() if what.startswith(str(tmp_path / "out"))]
    # Runtimes round activations to 8 bits, and are as far from the original as the graph is.
    assert outside["kl"] == pytest.approx(inside["kl"], rel=0.5) and outside["top1"] > 0.8
    assert outside["perplexity"] == pytest.approx(inside["perplexity"], rel=0.05)
    (record,) = [r for r in json.loads(report.read_text())["passes"] if r["name"] == "quantize"]
    assert record["kl"] == inside["kl"] and record["layers"][UP]["weight_error"] > 0
