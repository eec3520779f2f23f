"""Mixtures of experts in ONNX Runtime: its own ops where the provider has them, else with every expert computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mixtures import VOCAB, mixture
from onnx_files import op_types, run_directory, write

import irlab
from irlab import Module
from irlab.backends.onnx import ONNX
from irlab.interp import evaluate
from irlab.ops import nn

SCHEMES = [f"{scheme} sym={sym}" for scheme in ("int4 group=16", "int8 group=32") for sym in ("true", "false")]
PIPELINES = ["", "quantize{group=32}", "quantize{scheme=int8 group=0}", "quantize{scheme=q4_0}"]
IDS = {"input_ids": np.arange(26).reshape(2, 13) % VOCAB}


def written(module: Module, directory: Path, tolerance: float, **options: object) -> set[str]:
    """The node types of the file, which gives what the interpreter gives, within a part of the largest logit."""
    legal = write(module, directory, **options)
    wanted = evaluate(legal, IDS)["logits"].float().numpy()
    found = run_directory(directory, IDS)["logits"].astype("f4")
    np.testing.assert_allclose(found, wanted, atol=tolerance * float(np.abs(wanted).max()))
    return op_types(directory)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_moe_of_the_runtime(top_k: int, normalise: bool, tmp_path: Path) -> None:
    kinds = written(mixture(top_k=top_k, normalise=normalise), tmp_path / "out", 1e-5)
    assert "MoE" in kinds and "TopK" not in kinds


@pytest.mark.parametrize("scheme", SCHEMES)
def test_qmoe_of_the_same_codes(scheme: str, tmp_path: Path) -> None:
    """Codes of 8 bits meet activations of 8 bits, always; those of 4 bits where the accuracy level says so."""
    module = irlab.run(mixture(layers=1), f"quantize{{scheme={scheme} exclude=lm_head.weight}}")
    level, tolerance = (4, 3e-2) if "int8" in scheme else (0, 1e-5)
    assert "QMoE" in written(module, tmp_path / "out", tolerance, accuracy_level=level)
    wanted = evaluate(module, IDS)["logits"].numpy()
    found = run_directory(tmp_path / "out", IDS)["logits"]
    np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max())


def test_activations_are_not_rounded_unasked(tmp_path: Path) -> None:
    module = irlab.run(mixture(), "quantize{scheme=int8 group=32 exclude=lm_head.weight}")
    assert "QMoE" not in written(module, tmp_path / "out", 1e-5, accuracy_level=0)


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("options", [{"profile": "portable"}, {"ep": "webgpu"}, {"precision": "fp16"}], ids=str)
def test_every_expert_elsewhere(pipeline: str, options: dict[str, str], tmp_path: Path) -> None:
    module = irlab.run(mixture(), pipeline) if pipeline else mixture()
    exact = {} if "profile" in options else {"accuracy_level": 0}
    written(module, tmp_path / "out", 5e-2 if "precision" in options else 2e-3, **exact, **options)


def test_another_activation_is_spelled_out(tmp_path: Path) -> None:
    module = mixture()
    for op in module.graph.find(nn.MoE):
        module.graph.replace(op, op.rebuild(op.operands, activation="gelu").result)
    kinds = written(module, tmp_path / "out", 1e-5)
    assert "MoE" not in kinds and "TopK" in kinds


def test_the_plan_says_how_experts_are_held() -> None:
    rows = {row.what: row for row in ONNX().plan(mixture())}
    assert rows["nn.moe x 2"].holding == "native"
    rows = {row.what: row for row in ONNX(profile="portable").plan(mixture())}
    assert rows["nn.moe x 2"].holding == "emulated"
