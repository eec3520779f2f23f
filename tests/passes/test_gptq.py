"""quantize{method=gptq}: better than rounding on the data it saw, in a sweep, after kill -9, and where refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import irlab
from irlab import Context, Module
from irlab.analysis import Analysis, InputHessian, LayerStatistics
from irlab.calibration import Sample
from irlab.encodings import Encoding, IntegerEncoding
from irlab.errors import InputError
from irlab.layers import Layer
from irlab.passes.quantize import Quantize
from irlab.passes.quantize.gptq import Compensation, compensated_codes
from irlab.passmgr import PassManager, PassRecord
from irlab.schedule import build_pipeline
from irlab.sweep import LayerPass
from irlab.types import f16
from irlab.weights import Parts, WeightSymbol

ENCODINGS = [IntegerEncoding(bits, symmetric, 16, f16) for bits in (2, 3, 4, 8) for symmetric in (True, False)]


@pytest.fixture(scope="module")
def module() -> Module:
    return irlab.run(irlab.load("demo"), "fuse")


def problem(rows: int = 24, columns: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A weight and the Hessian of correlated inputs."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, columns)) @ rng.standard_normal((columns, columns)) * rng.uniform(0.1, 3, columns)
    return rng.standard_normal((rows, columns)).astype(np.float32), x.T @ x / 300


def output_error(weight: np.ndarray, decoded: np.ndarray, hessian: np.ndarray) -> float:
    off = weight.astype(np.float64) - decoded
    return float(np.vdot(off @ hessian, off))


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_compensation_beats_rounding(encoding: Encoding, act_order: bool) -> None:
    weight, hessian = problem()
    compensated = encoding.decode(compensated_codes(weight, Compensation.of(hessian, 0.01, act_order), encoding))
    rounded = encoding.decode(encoding.encode(weight))
    assert output_error(weight, compensated, hessian) < 0.75 * output_error(weight, rounded, hessian)


def test_the_factor_is_that_of_the_inverse() -> None:
    _, hessian = problem()
    found = Compensation.of(hessian, 0.01, act_order=False)
    damped = hessian + 0.01 * np.diagonal(hessian).mean() * np.eye(len(hessian))
    assert np.allclose(np.tril(found.factor, -1), 0)
    np.testing.assert_allclose(found.factor.T @ found.factor @ damped, np.eye(len(hessian)), atol=1e-3)


def test_channels_that_were_never_seen_are_rounded_to_nearest() -> None:
    weight, hessian = problem()
    hessian[:, 7] = hessian[7, :] = 0
    encoding = ENCODINGS[4]
    compensation = Compensation.of(hessian, 0.01, act_order=True)
    decoded = encoding.decode(compensated_codes(weight, compensation, encoding))
    plain = encoding.fit(weight, compensation.importance)
    assert np.array_equal(decoded[:, 7], plain.round(7, weight[:, 7]))


def test_inputs_of_one_direction_need_damping_only() -> None:
    direction = np.linspace(1, 2, 48)
    found = Compensation.of(np.outer(direction, direction), 0.01, act_order=True)
    assert np.isfinite(found.factor).all()
    assert np.isfinite(Compensation.of(np.zeros((48, 48)), 0.01, True).factor).all()
    with pytest.raises(InputError, match="not finite"):
        Compensation.of(np.full((48, 48), np.nan), 0.01, True)
    with pytest.raises(InputError, match="singular"):
        Compensation.of(-np.eye(48), 0.01, True)


# In a model


def run(module: Module, pipeline: str, ids: object, cache: Path) -> tuple[Module, list[PassRecord]]:
    new = module.clone()
    manager = PassManager(build_pipeline(pipeline), Context(calibration=Sample(ids, length=32), cache_dir=cache))
    return new, manager.run(new)


def codes(module: Module) -> dict[str, np.ndarray]:
    """The stored parts of every encoded weight."""
    return {
        f"{name}:{part}": np.array(array)
        for name, symbol in module.weights.items()
        if symbol.type.encoding is not None
        for part, array in symbol.recipe.codes(0, symbol.recipe.row_count).items()
    }


def test_every_layer_is_better_than_rounded(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new, (record,) = run(module, "quantize{method=gptq scheme=int3}", ids, tmp_path)
    assert record.weights_computed == len(record.layers) == 28
    assert new.weights["model.embed_tokens.weight"].type.encoding is None
    for name, errors in record.layers.items():
        symbol = new.weights[name]
        assert isinstance(symbol.recipe, Parts) and errors["bits"] == 3.5
        assert 0 < errors["output_error"] < errors["weight_error"] < 0.5
    text = str(irlab.run(new, "dce"))
    assert "q<int3, sym, group=32, scale=f16>" in text


def test_embeddings_are_rounded_and_indivisible_matrices_kept(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new, _ = run(module, "quantize{method=gptq group=0 embeddings=int8 exclude=*v_proj*}", ids, tmp_path)
    elements = {name: str(symbol.type.element) for name, symbol in new.weights.items()}
    assert elements["model.embed_tokens.weight"].startswith("q<int8")
    assert elements["model.layers.0.self_attn.v_proj.weight"] == "bf16"
    with pytest.raises(InputError, match="not whole groups of 100"):
        run(module, "quantize{method=gptq group=100}", ids, tmp_path)


def test_it_needs_calibration_but_not_for_a_plan(module: Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"method=gptq\} needs calibration data"):
        irlab.run(module, "quantize{method=gptq}")
    planned = module.clone()
    Quantize(method="gptq").run(planned, Context(is_plan=True))
    assert sum(symbol.type.encoding is not None for symbol in planned.weights.values()) == 28


def test_the_directory_owns_its_codes(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new, _ = run(module, "quantize{method=gptq}", ids, tmp_path / "cache")
    irlab.emit(new, "ir", tmp_path / "m.irlab")
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.unlink()
    again = irlab.load(tmp_path / "m.irlab")
    assert codes(again).keys() and str(tmp_path / "cache") not in str(again)


@dataclass(frozen=True)
class Halve(LayerPass, name="halve", exactness="lossy"):
    """Halves the weights of each layer."""

    def needs(self) -> tuple[type[Analysis], ...]:
        return (InputHessian,)

    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        from irlab.weights import Affine

        names = statistics[InputHessian].weights
        return {name: WeightSymbol(name, Affine(layer.weights[name].recipe, 0.5)) for name in names}


def test_neighbouring_passes_share_a_sweep(
    module: Module, ids: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    add = InputHessian.add
    monkeypatch.setattr(InputHessian, "add", lambda self, x: rows.append(len(x)) or add(self, x))
    steps = [Halve(), Quantize(method="gptq")]
    ctx = Context(calibration=Sample(ids, length=32), cache_dir=tmp_path)
    new = module.clone()
    records = PassManager(steps, ctx).run(new)
    assert [record.name for record in records] == ["sweep", "halve", "quantize"]
    assert sum(rows) == 256 * (4 * 4 + 1)  # four values for the matrices of each layer, and the head's, once
    name = "model.layers.2.mlp.up_proj.weight"
    before, after = module.weights[name].recipe.read().astype(np.float32), new.weights[name].recipe.read()
    assert np.abs(after - before / 2).max() < 0.25 * np.abs(before).max()


SCRIPT = """
import sys, irlab, numpy as np
ids = np.random.default_rng(0).integers(0, 1024, (8, 32))
module = irlab.run(irlab.load("demo"), "fuse")
irlab.run(module, "quantize{method=gptq}", calibration=ids, calibration_length=32, cache_dir=sys.argv[1])
"""


def test_a_killed_run_goes_on_and_ends_in_the_same_bits(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    # Sums are the same to the last bit only over as many threads as this process has.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "a")], env=environment)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "a").rglob("layer-0001.safetensors")):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = list((tmp_path / "a").rglob("layer-*.safetensors"))
    assert 2 <= len(kept) < 6
    states = {file: file.stat().st_mtime_ns for file in kept}
    resumed, (record,) = run(module, "quantize{method=gptq}", ids, tmp_path / "a")
    whole, (fresh,) = run(module, "quantize{method=gptq}", ids, tmp_path / "b")
    assert {file: file.stat().st_mtime_ns for file in kept} == states
    a, b = codes(resumed), codes(whole)
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    assert record.layers == fresh.layers


# On the command line


def cli(*words: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"IRLAB_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-m", "irlab", *words], env=environment, capture_output=True, text=True, timeout=300
    )


def test_from_text_to_report(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little girl who loved to play outside. " * 60, "utf-8")
    words = ["demo", "-p", "fuse,quantize{method=gptq}", "--calibration", str(text), "--calibration-tokens", "512"]
    words += ["--eval", str(text), "--eval-tokens", "256", "--report", str(tmp_path / "r.json")]
    done = cli(*words, "--emit", "ir", "-o", str(tmp_path / "m.irlab"), cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert "after quantize{method=gptq}: perplexity" in done.stderr and "model.layers.3" in done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    step = report["passes"][-1]
    assert step["name"] == "quantize" and step["kl"] < 0.2 and 0 < step["top1"] <= 1
    assert step["layers"]["model.layers.0.mlp.up_proj.weight"]["bits"] == 4.5
    assert report["quality"]["before"]["perplexity"] > 1


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["-p", "fuse,quantize{method=gptq}"], 1, "needs calibration data (give --calibration TEXTFILE"),
        (["-p", "fuse,quantize{method=gptq}", "--calibration", "none.txt"], 1, "none.txt: No such file"),
        (["--eval-in", "gguf"], 2, "--eval-in gguf has nothing to run"),
        (["--calibration", "x", "--calibration-tokens", "0"], 2, "--calibration-tokens: 0 is less than 1"),
    ],
)
def test_requests_that_cannot_be_met(words: list[str], status: int, message: str, tmp_path: Path) -> None:
    done = cli("demo", *words, cache=tmp_path)
    assert done.returncode == status and message in done.stderr and "Traceback" not in done.stderr
