"""mixed-precision: files are never larger than asked for, the plan is the best, and its prediction holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import irlab
from irlab import Context, Module
from irlab.calibration import Sample
from irlab.decoder import sample
from irlab.errors import InputError, UsageError
from irlab.outputs import size_bytes
from irlab.passes.mixed_precision.choices import choices
from irlab.passes.mixed_precision.losses import representatives
from irlab.passmgr import PassManager, PassRecord
from irlab.quality import quality
from irlab.registry import backend
from irlab.schedule import build_pipeline
from irlab.weights import Recipe


@pytest.fixture(scope="module")
def module() -> Module:
    return irlab.run(irlab.load("demo"), "fuse")


@pytest.fixture(scope="module")
def ids(module: Module) -> np.ndarray:
    """Text that the model knows: its own."""
    return np.stack(sample(module, 40, 64, seed=1))


class Run:
    """A run of a pipeline with all that it said."""

    def __init__(self, module: Module, pipeline: str, cache: Path, ids: object = None, *targets: str) -> None:
        outputs = tuple(irlab.api.make_backend(target, {}) for target in targets)
        self.said: list[str] = []
        self.ctx = Context(
            tuple(output.name for output in outputs),
            outputs=outputs,
            calibration=None if ids is None else Sample(ids, 4096, 64),
            cache_dir=cache,
            tell=self.said.append,
        )
        self.module = module.clone()
        manager = PassManager(build_pipeline(pipeline), self.ctx)
        self.records: list[PassRecord] = manager.run(self.module)
        self.plan = self.records[0].plan

    def emit(self, target: str, out: Path) -> int:
        irlab.emit(self.module, target, out, parity=False, force=True, ctx=self.ctx)
        return size_bytes(out)


def loss(changed: Module, ids: np.ndarray, original: Module) -> float:
    found = quality(changed, [{"input_ids": ids}], Context(), original).kl
    assert found is not None
    return found


@pytest.mark.parametrize("size", [1_157_248, 1_200_000, 1_750_001, 2_600_000, 9_000_000])
def test_a_gguf_file_is_never_larger(module: Module, cache: Path, tmp_path: Path, size: int) -> None:
    run = Run(module, f"mixed-precision{{size={size}}}", cache, None, "gguf")
    written = run.emit("gguf", tmp_path / "model.gguf")
    assert written == run.plan["files"]["gguf"] <= size
    # What is left over is less than the next better plan takes, a few rows of blocks.
    assert size > 7_000_000 or written > size - 20_000


@pytest.mark.parametrize("target", ["onnx", "onnx{precision=fp16}", "onnx{profile=portable layout=plain}"])
@pytest.mark.parametrize("size", [2_200_000, 3_000_000])
def test_an_onnx_directory_is_never_larger(module: Module, cache: Path, tmp_path: Path, target: str, size: int) -> None:
    run = Run(module, f"mixed-precision{{size={size} types=int4,int8}},kv-cache", cache, None, target)
    written = run.emit(target, tmp_path / "model")
    assert written == next(iter(run.plan["files"].values())) <= size
    assert written > size - 60_000


def test_shards_are_counted_with_their_heads(module: Module, cache: Path, tmp_path: Path) -> None:
    run = Run(module, "mixed-precision{size=1500000}", cache, None, "gguf{split=300KB}")
    assert run.emit("gguf{split=300KB}", tmp_path / "model") == run.plan["files"]["gguf{split=300000}"] <= 1_500_000


def test_each_of_several_files_fits(module: Module, cache: Path, tmp_path: Path) -> None:
    run = Run(module, "mixed-precision{size=2600000},kv-cache", cache, None, "gguf", "onnx")
    for target in ("gguf", "onnx"):
        assert run.emit(target, tmp_path / target) == run.plan["files"][target] <= 2_600_000
    assert {w["scheme"].split()[0] for w in run.plan["weights"].values()} <= {"int4", "int8", "none"}


def test_a_size_that_cannot_be_met_says_the_smallest_possible(module: Module, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the smallest possible is 1,157,248 bytes"):
        Run(module, "mixed-precision{size=1157247}", cache, None, "gguf")
    with pytest.raises(InputError, match=r"bpw=1 cannot be reached: the smallest possible is \d\.\d+"):
        Run(module, "mixed-precision{bpw=1}", cache, None, "gguf")


def test_a_pass_that_makes_the_file_larger_is_found_out(module: Module, cache: Path, tmp_path: Path) -> None:
    run = Run(module, "mixed-precision{size=2MB}", cache, None, "gguf")
    with pytest.raises(irlab.errors.CheckError, match="more than the 2,000,000 that were asked for"):
        irlab.emit(module, "gguf", tmp_path / "large.gguf", parity=False, ctx=run.ctx)


def test_bits_are_those_of_all_weights(module: Module, cache: Path) -> None:
    run = Run(module, "mixed-precision{bpw=4}", cache, None, "gguf")
    numbers = sum(s.type.size for s in run.module.weights.values() if s.type.dtype.is_float)  # type: ignore[misc]
    stored = sum(symbol.size_bytes for symbol in run.module.weights.values())
    assert 3.97 < 8 * stored / numbers <= 4


def test_the_prediction_holds(module: Module, ids: np.ndarray, cache: Path) -> None:
    """On the calibration data itself, from 3 to 5 bits."""
    for bits in (3, 4, 5):
        for method in ("gptq", "rtn"):
            run = Run(module, f"mixed-precision{{bpw={bits} method={method}}}", cache, ids, "gguf")
            ratio = loss(run.module, ids, module) / run.plan["predicted_kl"]
            assert 0.6 < ratio < 1.7, (bits, method, ratio)


def test_a_mix_beats_one_type_of_the_same_bytes(module: Module, ids: np.ndarray, cache: Path, tmp_path: Path) -> None:
    uniform = Run(module, "quantize{method=gptq scheme=q4_0 embeddings=q4_0}", cache, ids, "gguf")
    size = uniform.emit("gguf", tmp_path / "uniform.gguf")
    mixed = Run(module, f"mixed-precision{{size={size}}}", cache, ids, "gguf")
    assert mixed.emit("gguf", tmp_path / "mixed.gguf") <= size
    assert loss(mixed.module, ids, module) < 0.75 * loss(uniform.module, ids, module)


def test_the_smallest_model_of_a_divergence(module: Module, ids: np.ndarray, cache: Path) -> None:
    small, large = (Run(module, f"mixed-precision{{max-kl={kl}}}", cache, ids, "gguf") for kl in (0.05, 0.01))
    assert small.plan["predicted_kl"] <= 0.05 and large.plan["predicted_kl"] <= 0.01
    assert small.plan["bits_per_weight"] < large.plan["bits_per_weight"]
    with pytest.raises(InputError, match="max-kl=1e-05 cannot be reached: the least with these types is"):
        Run(module, "mixed-precision{max-kl=0.00001 types=q4_0}", cache, ids, "gguf")
    exact = Run(module, "mixed-precision{max-kl=0.0000000001 types=q4_0,none}", cache, ids, "gguf")
    assert {w["scheme"] for w in exact.plan["weights"].values()} == {"none"}


def test_the_plan_is_the_best_of_all(module: Module, ids: np.ndarray, cache: Path) -> None:
    """Exchanging the schemes of any two weights either takes more or loses more."""
    run = Run(module, "mixed-precision{size=1500000}", cache, ids, "gguf")
    step = build_pipeline("mixed-precision{size=1500000}")[0]
    again = step.planned(module, run.ctx)  # type: ignore[attr-defined]
    assert {name: str(w.choice) for name, w in again.weights.items()} == {
        name: w["scheme"] for name, w in run.plan["weights"].items()
    }
    assert sum(w["kl"] for w in run.plan["weights"].values()) == pytest.approx(run.plan["predicted_kl"])


def test_without_calibration_only_the_errors_of_weights_count(module: Module, cache: Path) -> None:
    run = Run(module, "mixed-precision{bpw=4}", cache, None, "gguf")
    assert "from the errors of weights alone" in run.said[0] and run.plan["predicted_kl"] is None
    with pytest.raises(InputError, match="max-kl needs calibration data"):
        Run(module, "mixed-precision{max-kl=0.1}", cache, None, "gguf")


def test_weights_have_the_codes_that_quantize_gives(module: Module, ids: np.ndarray, cache: Path) -> None:
    run = Run(module, "mixed-precision{bpw=4.2}", cache, ids, "gguf")
    by_hand = Run(module, run.plan["pipeline"], cache, ids, "gguf")
    for name, symbol in run.module.weights.items():
        assert symbol.type is by_hand.module.weights[name].type
        assert np.array_equal(symbol.recipe.read(), by_hand.module.weights[name].recipe.read())


def test_a_second_run_computes_nothing_and_ends_in_the_same_bits(
    module: Module, ids: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Run(module, "mixed-precision{bpw=4}", tmp_path, ids, "gguf")
    kept = sorted((tmp_path / "losses").rglob("*.safetensors"))
    for file in kept[::2]:
        file.unlink()  # a run that was killed
    second = Run(module, "mixed-precision{bpw=4}", tmp_path, ids, "gguf")
    assert second.plan == first.plan

    def fail(*args: object) -> None:
        raise AssertionError("nothing is left to compute")

    monkeypatch.setattr("irlab.passes.mixed_precision.losses.compensated_codes", fail)
    monkeypatch.setattr("irlab.passes.quantize.quantize.compensated_codes", fail)
    monkeypatch.setattr("irlab.analysis.InputHessian.add", fail)
    third = Run(module, "mixed-precision{bpw=4}", tmp_path, ids, "gguf")
    for name, symbol in third.module.weights.items():
        assert np.array_equal(symbol.recipe.read(), first.module.weights[name].recipe.read())


def test_an_encoder_is_planned_by_its_outputs(ids: np.ndarray, cache: Path) -> None:
    b = irlab.GraphBuilder("encoder")
    x = b.input("x", "f32", ("n", 64))
    for name in ("a", "b"):
        x = irlab.nn.linear(x, b.random_weight(name, "f32", (64, 64)))
    b.output(y=b.add(x))
    table = {"x": np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)}
    run = Run(b.module(), "mixed-precision{bpw=12 types=int4,int8 group=32 sym=true}", cache, table, "onnx")
    assert "relative errors of outputs" in run.said[0]


def test_a_weight_that_no_type_fits_is_named(cache: Path) -> None:
    b = irlab.GraphBuilder("narrow")
    x = b.input("x", "f32", ("n", 40))
    b.output(y=b.add(irlab.nn.linear(x, b.random_weight("w", "f32", (8, 40)))))
    with pytest.raises(InputError, match="weight 'w': rows of 40 numbers fit no type"):
        Run(b.module(), "mixed-precision{bpw=5 types=q4_0}", cache, None, "gguf")


def test_goals_are_checked() -> None:
    for options in ("", "size=1MB bpw=4"):
        with pytest.raises(UsageError, match="needs one goal"):
            build_pipeline(f"mixed-precision{{{options}}}")
    for options in ("bpw=-1", "bpw=nan", "max-kl=nan", "max-kl=inf", "bpw=4 damping=-1"):
        with pytest.raises(UsageError, match="takes"):
            build_pipeline(f"mixed-precision{{{options}}}")


def test_types_are_those_that_all_targets_hold() -> None:
    def names(types: tuple[str, ...], *targets: str) -> list[str]:
        found = choices(types, {"group": 32, "sym": True}, [backend(target)() for target in targets])
        return [choice.scheme for choice in found]

    assert names((), "gguf")[0] == "q2_k" and names((), "gguf")[-1] == "none"
    assert names((), "onnx") == ["int2", "int4", "int8", "none"]
    assert names((), "onnx", "gguf") == ["int4", "int8", "none"]
    assert names((), "tensorrt") == ["int4", "int8", "none"]
    with pytest.raises(UsageError, match="types=q4_k is not stored natively by onnx"):
        names(("q4_k",), "onnx")


def test_a_plan_reads_no_weight(module: Module, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from irlab.weights import File

    def fail(self: Recipe, start: int, stop: int) -> None:
        raise AssertionError(f"{self} is read")

    monkeypatch.setattr(File, "rows", fail)
    said: list[str] = []
    ctx = Context(("gguf",), is_plan=True, tell=said.append, cache_dir=cache)
    planned = module.clone()
    PassManager(build_pipeline("mixed-precision{size=1500000}"), ctx).run(planned)
    assert "no weight is read" in said[0] and "q3_k" in said[0]
    assert all(s.type.encoding is not None for s in planned.weights.values() if s.type.rank == 2)


def test_samples_stand_for_all_rows() -> None:
    rng = np.random.default_rng(0)
    weights, values = rng.lognormal(0, 2, 5000), rng.uniform(0.5, 1.5, 5000)
    indices, times = representatives(weights, 500)
    assert len(indices) <= 500
    found = float((times * weights[indices] * values[indices]).sum())
    assert found == pytest.approx(float((weights * values).sum()), rel=0.05)
    everything, once = representatives(weights[:300], 500)
    assert np.array_equal(everything, np.arange(300)) and (once == 1).all()


def test_the_report_has_the_plan(tmp_path: Path) -> None:
    from command_line import irlab_opt

    report = tmp_path / "report.json"
    done = irlab_opt(
        "demo", "-p", "fuse,mixed-precision{size=1500KB}", "--emit", "gguf", "-o", tmp_path / "m.gguf",
        "--no-parity", "--report", report, "--cache-dir", tmp_path / "cache",
        "--calibration", "self", "--calibration-tokens", "512", "--calibration-length", "64",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "plan for size=1,500,000 bytes" in done.stderr
    (record,) = [r for r in json.loads(report.read_text())["passes"] if r["name"] == "mixed-precision"]
    assert record["plan"]["files"]["gguf"] == (tmp_path / "m.gguf").stat().st_size
    assert record["plan"]["weights"]["model.embed_tokens.weight"]["bytes"] > 0
    assert 0 < record["predicted_kl"] == record["plan"]["predicted_kl"] < 0.1
    assert all("output_error" in record["layers"][name] for name in record["plan"]["weights"])
