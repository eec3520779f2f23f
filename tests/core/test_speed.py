"""How fast is what was written: what is compared with what, and when it is said that nothing was gained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

import irlab
from irlab.api import make_backend
from irlab.emission import emit_with
from irlab.ops import nn, prim
from irlab.passmgr import Context, Pass
from irlab.schedule import build_pipeline
from irlab.speed import Measured, SpeedGain, left_out, run_sizes, speeds
from irlab.target import Speed, TimedRuntime
from irlab.weights import Slice, WeightSymbol


@dataclass(frozen=True)
class HalveMLPs(Pass, name="halve-mlps", exactness="lossy", saves_work=True):
    """Leaves out the second half of all neurons."""

    def run(self, module, ctx):
        for op in module.graph.find(nn.GatedMLP):
            matrices = []
            for value, axis in ((op.gate, 0), (op.up, 0), (op.down, 1)):
                symbol = value.op.symbol
                half = Slice(symbol.recipe, axis, 0, symbol.type.shape[axis] // 2)
                matrices.append(prim.weight(WeightSymbol(symbol.name, half)))
            module.graph.replace(op, op.rebuild((op.x, *matrices, None, None, None)).result)


class Recorded(TimedRuntime):
    """Says of each file what it was told to, and remembers who was asked."""

    name = "recorded"

    def __init__(self, **found):
        self.found, self.asked = found, []

    def unavailable(self):
        return ""

    def logits(self, out, prompts):
        raise AssertionError

    def greedy(self, out, prompt, count):
        raise AssertionError

    def speed(self, out, prompt, new, *, processor=False):
        self.asked.append(out.name)
        return Speed(*self.found[out.name].pop(0))


def test_files_are_measured_in_turns():
    runtime = Recorded(a=[(1, 10), (3, 30), (2, 20)], b=[(4, 5), (4, 5), (4, 5)])
    a, b = speeds([(runtime, Path("a")), (runtime, Path("b"))], 8, 4, rounds=3)
    assert runtime.asked == ["a", "b"] * 3
    measured = Measured("recorded", a, b, ("prune",))
    assert measured.speed == (2, 20) and measured.before == (4, 5)
    assert measured.gain == (0.5, 4)  # the median of 10/5, 30/5, 20/5
    assert not measured.warning and "20.0 tokens/s" in str(measured) and "4.00 and 0.50 times" in str(measured)


@pytest.mark.parametrize(
    ("decode", "warns"),
    [([2, 2, 2, 2, 2], False), ([1, 1, 1, 1, 1], True), ([2, 0.9, 0.9, 2, 2], True), ([2, 2, 0.9, 2, 2], False)],
    ids=["faster", "as fast", "now so, now so", "slower once"],
)
def test_a_gain_must_show_in_all_rounds_but_one(decode, warns):
    same = [Speed(1.0, 1.0)] * 5
    measured = Measured("llama.cpp", [Speed(1.0, d) for d in decode], same, ("sparsify",))
    assert bool(measured.warning) == warns
    if warns:
        assert measured.warning == "no gain shows in llama.cpp: it is as fast without sparsify"


def test_passes_that_save_work_are_left_out_or_else_all_lossy_ones():
    prune, rest = HalveMLPs(), build_pipeline("fuse,quantize{scheme=int4},kv-cache")
    assert left_out([prune, *rest]) == [prune]
    assert [step.name for step in left_out(rest)] == ["quantize"]
    assert left_out(build_pipeline("fuse,kv-cache")) == []


def test_the_file_for_comparison_has_the_same_types_and_nothing_is_learned_for_it():
    """There is no calibration data here, and gptq would ask for it."""
    passes = [*build_pipeline("fuse"), HalveMLPs(), *build_pipeline("quantize{scheme=int4 method=gptq},kv-cache")]
    baseline = SpeedGain(irlab.load("demo"), passes, Context()).baseline()
    plain = irlab.run(irlab.load("demo"), "fuse,quantize{scheme=int4},kv-cache")
    assert {n: s.type for n, s in baseline.weights.items()} == {n: s.type for n, s in plain.weights.items()}


def test_prompts_fit_into_the_context():
    module = irlab.load("demo")
    assert run_sizes(module) == (128, 64)
    module.metadata["config"] = {"max_position_embeddings": 48}
    assert run_sizes(module) == (32, 16)


@pytest.mark.parametrize("target", ["gguf", "onnx"])
def test_a_smaller_model_is_faster_in_its_runtime(target, tmp_path):
    passes = [*build_pipeline("fuse"), HalveMLPs(), *build_pipeline("kv-cache")]
    backend = make_backend(target, {})
    if reason := backend.runtime().unavailable():
        pytest.skip(reason)
    original = irlab.load("demo")
    emitted = emit_with(backend, irlab.run(original, passes), tmp_path / "m.out", parity=False, force=False)
    measured = SpeedGain(original, passes, Context()).measure(backend, emitted)
    assert measured.runtime == backend.runtime().name and len(measured.rounds) == len(measured.rounds_before) == 5
    assert measured.without == ("halve-mlps",)
    assert measured.gain.prompt > 1 or measured.gain.decode > 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.out"]
    (by_processor,) = speeds([(emitted.runtime, emitted.out)], 32, 8, rounds=1, processor=True)
    assert min(by_processor[0]) > 0


def test_a_target_without_a_runtime_is_skipped(tmp_path):
    backend = make_backend("ir", {})
    module = irlab.load("demo")
    emitted = emit_with(backend, module, tmp_path / "m.irlab", parity=False, force=False)
    measured = SpeedGain(module, build_pipeline("fuse"), Context()).measure(backend, emitted)
    assert str(measured) == "speed not measured: ir has no runtime to measure it in"
    assert measured.as_dict()["tokens_per_second"] is None


def test_the_command_line_prints_and_reports_it(tmp_path, capsys):
    from irlab.cli import main

    out, report = tmp_path / "m.gguf", tmp_path / "r.json"
    pipeline = "fuse,sparsify{method=magnitude}"
    args = ["demo", "-p", pipeline, "--emit", "gguf", "-o", str(out), "--no-parity", "--measure-speed"]
    assert main([*args, "--report", str(report)]) == 0
    found = json.loads(report.read_text())["speed"][str(out)]
    assert found["runtime"] == "llama.cpp" and found["without"] == ["sparsify{method=magnitude}"]
    assert min(found["tokens_per_second"].values()) > 0 and min(found["tokens_per_second_before"].values()) > 0
    printed = capsys.readouterr().err
    assert "tokens/s" in printed and ("no gain shows in llama.cpp" in printed) == bool(found["warning"])
