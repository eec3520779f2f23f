"""Outputs that cannot hold what the passes will make are refused before any work; what targets require runs first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import irlab
from irlab import Context, Module
from irlab.calibration import Sample
from irlab.cli import main
from irlab.passmgr import PassManager
from irlab.rehearsal import rehearsed
from irlab.schedule import build_pipeline, scheduled_pipeline
from irlab.store import owned_weights


@pytest.fixture(scope="module")
def module() -> Module:
    return irlab.run(irlab.load("demo"), "fuse")


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever takes long fails."""

    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("work was done before the refusal")

    for name in ("irlab.sweep.sweep", "irlab.compute_once.write_weights", "irlab.collect.collect"):
        monkeypatch.setattr(name, fail)


BY_NUMBERS = ("mixed-precision{bpw=5}", "prune-hidden{ratio=0.25}")
"""What types result shows only when numbers are known, or the tie of the head is undone."""

LEARN = ("--calibration", "self", "--calibration-tokens", "512")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("quantize{method=gptq}", *LEARN, "-o", "x.ir"), "do not fit in IR text (write a directory: -o x.irlab)"),
        (("sparsify", *LEARN, "--emit", "ir", "-o", "x.ir"), "do not fit in IR text"),
        (("prune-neurons{ratio=0.25},quantize", *LEARN, "-o", "x.ir"), "do not fit in IR text"),
        (("quantize{method=gptq scheme=int3}", *LEARN, "--emit", "gguf", "-o", "x"), "GGUF has no type for the codes"),
        (("quantize{scheme=int3}", "--emit", "onnx", "-o", "o", "--emit", "gguf", "-o", "x"), "no type for the codes"),
        (("quantize{method=gptq},decompose", *LEARN, "--emit", "gguf", "-o", "x"), "GGUF cannot hold"),
        (("quantize{method=gptq}", *LEARN, "--emit", "onnx{layout=genai}", "-o", "x"), "needs a decoder with a cache"),
        (("quantize{method=gptq}", *LEARN, "--emit", "gguf{imatrix=none.gguf}", "-o", "x"), "none.gguf"),
        (("quantize{method=gptq},quantize-activations", *LEARN, "--emit", "hf", "-o", "x"), "rounds no activations"),
        (("prune-heads{ratio=0.5 score=magnitude refit=false},sparsify", "--emit", "onnx", "-o", "x"), "calibration"),
        (("quantize{method=gptq scheme=nf4}", *LEARN, "--emit", "hf{layout=awq}", "-o", "x"), "hf:"),
    ],
)
def test_refused_before_any_work(
    args: tuple[str, ...],
    message: str,
    no_work: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "-p", *args]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1 and message in errors[0]
    assert not list(tmp_path.iterdir())


def test_what_a_target_requires_runs_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.gguf"
    assert main(["demo", "-p", "quantize", "--emit", "gguf", "-o", str(out), "--no-parity"]) == 0
    assert "fuse runs first: gguf requires it (" in capsys.readouterr().err
    assert out.exists()
    assert main(["demo", "-p", "quantize,fuse", "--emit", "gguf", "-o", str(out), "--no-parity", "--force"]) == 0
    assert "runs first" not in capsys.readouterr().err


def test_required_passes_stand_in_front_with_their_reason() -> None:
    first, second = scheduled_pipeline("quantize", [irlab.api.make_backend("gguf", {})])
    assert (first.step.name, first.needed_by, second.step.name) == ("fuse", "gguf", "quantize")
    assert "nn ops" in first.reason
    new = irlab.run(irlab.load("demo"), "quantize", targets=["gguf"])
    assert new.graph.find(irlab.nn.RMSNorm)


def test_with_keep_going_only_what_nothing_can_hold_is_refused_early(tmp_path: Path) -> None:
    pipeline = "fuse,quantize{scheme=int3 group=32}"
    outputs = ["--emit", "gguf", "-o", str(tmp_path / "a"), "--emit", "onnx", "-o", str(tmp_path / "b")]
    assert main(["demo", "-p", pipeline, *outputs, "--keep-going", "--no-parity"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    "pipeline",
    [
        "quantize",
        "quantize{method=awq}",
        "correct",
        "sparsify{method=magnitude}",
        "sparsify{method=wanda refit=false}",
        "low-rank{method=svd rank=32}",
        "low-rank{rank=32}",
        "prune-neurons{ratio=0.25}",
        "prune-heads{ratio=0.5 score=magnitude refit=false}",
        "prune-hidden{ratio=0.25}",
        "prune-hidden{ratio=0.25 method=select}",
        "drop-layers{indices=1}",
        "drop-layers{indices=1 refit=false}",
        "share-weights{method=k-means}",
        "hash-weights{steps=1}",
        "tie-layers{groups=0-1}",
        "smooth-quant",
        "quantize-cache",
        "mixed-precision{bpw=5}",
    ],
)
def test_a_rehearsal_knows_shapes_and_what_will_be_computed(pipeline: str, module: Module, tmp_path: Path) -> None:
    """By types, sizes, and what IR text can hold of each weight, it is the run itself."""
    ids = np.random.default_rng(0).integers(0, 1024, (8, 32))
    passes = build_pipeline("quantize,correct" if pipeline == "correct" else pipeline)
    foreseen = rehearsed(module, passes, context(ids, tmp_path))
    done = module.clone()
    PassManager(passes, context(ids, tmp_path)).run(done)
    assert foreseen is not None
    if pipeline not in BY_NUMBERS:
        assert {n: str(s.type) for n, s in foreseen.weights.items()} == {
            n: str(s.type) for n, s in done.weights.items()
        }
    assert bool(owned_weights(foreseen)) == bool(owned_weights(done))


def context(ids: object, cache: Path) -> Context:
    return Context(calibration=Sample(ids, length=32), cache_dir=cache)


def test_what_only_the_work_shows_is_not_rehearsed(module: Module, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 1024, (8, 32))
    assert rehearsed(module, build_pipeline("mixed-precision{max-kl=0.02}"), context(ids, tmp_path)) is None


def test_healing_computes_all_that_it_may_train(module: Module, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 1024, (200, 32))
    made = rehearsed(module, build_pipeline("sparsify{method=magnitude},heal"), context(ids, tmp_path))
    assert made is not None and len(owned_weights(made)) == len(module.weights)
