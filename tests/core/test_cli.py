"""irlab-opt as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import SMALL, fails, irlab_opt
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("llama"), "llama")


def test_ir_goes_through_standard_input_and_output() -> None:
    result = irlab_opt("-", "-p", "canonicalize", stdin=SMALL)
    assert result.returncode == 0, result.stderr
    assert "prim.mul" not in result.stdout
    assert irlab_opt("-", stdin=result.stdout).stdout == result.stdout


def test_one_command_writes_gguf_and_onnx_and_a_report(model: Path, tmp_path: Path) -> None:
    pipeline = "fuse,quantize{scheme=int4 group=32},kv-cache"
    outputs = ("--emit", "gguf", "-o", tmp_path / "m.gguf", "--emit", "onnx", "-o", tmp_path / "onnx")
    result = irlab_opt(model, "-p", pipeline, *outputs, "--report", tmp_path / "report.json")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["parity"]) == {str(tmp_path / "m.gguf"), str(tmp_path / "onnx")}
    for parity in report["parity"].values():
        assert not parity["skipped"] and not parity["failure"]
        assert parity["kl"] < 0.05
    assert [p["name"] for p in report["passes"]] == ["fuse", "quantize", "kv-cache"]
    quantize = report["passes"][1]
    assert quantize["bytes_after"] < quantize["bytes_before"] / 2
    assert {"name", "seconds", "rewrites", "weights_computed", "bytes_before", "bytes_after"} <= set(quantize)
    assert report["bytes"][str(tmp_path / "m.gguf")] == (tmp_path / "m.gguf").stat().st_size


def test_existing_outputs_are_kept_without_force(tmp_path: Path) -> None:
    out = tmp_path / "m.ir"
    out.write_text("precious")
    assert "--force" in fails(1, "-", "-o", out, stdin=SMALL)
    assert out.read_text() == "precious"
    assert irlab_opt("-", "-o", out, "--force", stdin=SMALL).returncode == 0
    assert out.read_text().startswith("irlab 1")


def test_force_replaces_models_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "m.irlab"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    assert "other things than a model" in fails(1, "-", "--emit", "ir", "-o", out, "--force", stdin=SMALL)
    assert (out / "thesis.txt").read_text() == "precious"
    os.mkfifo(pipe := tmp_path / "pipe")
    assert "neither a file nor a directory" in fails(1, "-", "-o", pipe, "--force", stdin=SMALL)
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["-", "-p", "quantize{scheme=int3x}"], 2, "did you mean 'int3'"),
        (["-", "--new-plugin", ""], 2, "cannot be the name of a plug-in"),
        (["-", "--jobs", "0"], 2, "0 is less than 1"),
        (["-", "-p", "quantise"], 2, "did you mean 'quantize'"),
        (["-", "-p", "quantize{gruop=32}"], 2, "did you mean 'group'"),
        (["-", "-p", "quantize{scheme=int9}"], 2, "int4"),
        (["-", "-p", "fuse,,cse"], 2, "pipeline:1:6"),
        (["-", "-p", "fuse,repeat{n=2}(cse,quantise)"], 2, "pipeline:1:22: unknown pass 'quantise'"),
        (["-", "-p", "fuse", "--print-ir-after=fues"], 2, "did you mean 'fuse'"),
        (["-", "--print-ir-before=fuse"], 2, "the pipeline has no such pass"),
        (["-", "-p", "fuse,quantize{group=4 exclude=v}"], 1, "exclude=v matches no weight"),
        (["/nowhere/model", "--emit", "gguf{type=q9}", "-o", "x"], 2, "unknown GGUF type 'q9'"),
        (["-", "-p", "fuse,decompose,kv-cache"], 2, "kv-cache cannot run after decompose"),
        (["-", "--emit", "gguf"], 2, "needs a place to go"),
        (["-", "--emit", "ggfu", "-o", "x"], 2, "did you mean 'gguf'"),
        (["-", "--emit", "gguf{typ=q8_0}", "-o", "x"], 2, "did you mean 'type'"),
        (["/nowhere/model"], 1, "does not exist"),
        (["-", "--why-not", "fuse-rmsnorm"], 2, "did you mean 'fuse-rms-norm'"),
        (["-", "-o", "/nowhere/out.ir"], 1, "does not exist"),
        (["-", "--emit", "gguf", "-o", "out.gguf"], 1, "logits"),
        ([], 2, "no INPUT"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(args: list[str], status: int, message: str) -> None:
    assert message in fails(status, *args, stdin=SMALL)


def test_a_plan_is_looked_at_and_reported_like_any_run(tmp_path: Path) -> None:
    look = ("--stats", "--why-not", "fuse-rms-norm", "--report", tmp_path / "r.json")
    result = irlab_opt(
        "-", "-p", "canonicalize", "--emit", "onnx{layout=plain}", "--plan", "-o", "x", *look, stdin=SMALL
    )
    assert result.returncode == 0, result.stderr
    assert "plan for onnx" in result.stdout and "fuse-rms-norm" in result.stdout and "small" in result.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert [each["name"] for each in report["passes"]] == ["canonicalize"] and report["bytes"] == {}


def test_verbose_keeps_the_exit_status() -> None:
    result = irlab_opt("-", "-v", "-p", "nosuch", stdin=SMALL)
    assert result.returncode == 2 and "Traceback" in result.stderr


def test_outputs_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "b.ir").write_text("precious")
    outputs = ("--emit", "ir", "-o", tmp_path / "a.ir", "--emit", "ir", "-o", tmp_path / "b.ir")
    assert "exists" in fails(1, "-", *outputs, stdin=SMALL)
    assert not (tmp_path / "a.ir").exists()
    assert "does not exist" in fails(1, "-", "--report", tmp_path / "gone" / "r.json", stdin=SMALL)
    assert "same name" in fails(2, "-", *outputs[:4], *outputs[:4], stdin=SMALL)


def test_a_parity_that_was_not_checked_is_not_reported_as_equal(tmp_path: Path) -> None:
    outputs = ("--emit", "ir", "-o", tmp_path / "a.ir", "--report", tmp_path / "r.json")
    assert irlab_opt("-", *outputs, stdin=SMALL).returncode == 0
    (parity,) = json.loads((tmp_path / "r.json").read_text())["parity"].values()
    assert parity["skipped"] and parity["greedy_equal"] is None and parity["kl"] is None


def test_a_pass_file_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def (")
    assert "SyntaxError" in fails(1, "--load", tmp_path / "bad.py", "-", stdin=SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("f32[batch, 4]\n", "f32[batch, 5]\n"), "8:"),
        (("%1 = nn.linear(%0", "%1 = nn.linear(%7"), "8:"),
        (("nn.linear", "nn.liner"), "did you mean"),
        (("@w : f32[4, 8]", "@v : f32[4, 8]"), "@w"),
    ],
)
def test_broken_ir_names_line_and_column(change: tuple[str, str], message: str) -> None:
    line = fails(1, "-", stdin=SMALL.replace(*change))
    assert "<stdin>:" in line and message in line


def test_a_missing_weight_file_is_named(tmp_path: Path) -> None:
    text = SMALL.replace("random()", 'file("gone.safetensors", "w")')
    line = fails(1, "-", "--emit", "onnx{layout=plain}", "-o", tmp_path / "x", stdin=text)
    assert "gone.safetensors" in line
    assert not list(tmp_path.iterdir())


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    before = os.times()
    result = irlab_opt("--help")
    after = os.times()
    assert result.returncode == 0 and "examples:" in result.stdout
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.8
    code = "import sys, irlab, irlab.cli; irlab.cli.build_parser(); print([m for m in sys.modules if m in %r])"
    heavy = ["torch", "transformers", "onnx", "numpy", "rich"]
    shown = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_lists_and_help_name_every_pass_and_option() -> None:
    passes = irlab_opt("--list-passes").stdout
    assert all(name in passes for name in ("fuse", "quantize", "kv-cache", "canonicalize", "repeat"))
    assert "group" in irlab_opt("--help-pass", "quantize").stdout
    assert "gguf" in irlab_opt("--list-backends").stdout


def test_why_not_says_how_far_a_rule_came() -> None:
    text = """irlab 1
module "m"
@w : f32[8] = random()
graph(%x: f32[n, 8]) {
  %1 = prim.pow(%x, f32(2.0))     : f32[n, 8]
  %2 = prim.mean(%1) {axes=[-1]}  : f32[n, 1]
  %3 = prim.add(%2, f32(1e-05))   : f32[n, 1]
  %4 = prim.sqrt(%3)              : f32[n, 1]
  %5 = prim.mul(%x, %4)           : f32[n, 8]
  %6 = prim.mul(%5, @w)           : f32[n, 8]
  return y=%6
}
"""
    shown = irlab_opt("-", "--why-not", "fuse-rms-norm", stdin=text).stdout
    assert "prim.rsqrt" in shown and "prim.sqrt" in shown
    assert irlab_opt("-", "--why-not", "fuse-rms-norm@%5", stdin=text).stdout == shown
    assert "%3 is the result of prim.sqrt" in fails(2, "-", "--why-not", "fuse-rms-norm@%3", stdin=text)
    assert "did you mean" in fails(2, "-", "--why-not", "fuse-rms-norm@%55", stdin=text)


def test_a_pass_from_a_file_runs_like_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        """
from dataclasses import dataclass
from irlab import Context, Match, Module, Pass, Rule, Value, p
from irlab.passmgr import RulePass

class DropOne(Rule):
    \"\"\"x * 1  ->  x\"\"\"
    def pattern(self, x):
        return x * 1.0
    def rewrite(self, m: Match) -> Value:
        return m.x

@dataclass(frozen=True)
class Mine(RulePass, name="mine"):
    \"\"\"Drops multiplications by one.\"\"\"
    def rules(self):
        return [DropOne()]
"""
    )
    result = irlab_opt("--load", tmp_path / "mine.py", "-", "-p", "mine", "--timing", stdin=SMALL)
    assert result.returncode == 0, result.stderr
    assert "prim.mul" not in result.stdout and "drop-one" in result.stderr


def test_pictures_are_drawn_with_layers_folded(model: Path, tmp_path: Path) -> None:
    assert irlab_opt(model, "-p", "fuse", "--dump-graph", tmp_path / "g.dot").returncode == 0
    text = (tmp_path / "g.dot").read_text()
    assert "same as layer 0" in text and "nn.rms_norm" in text
    assert "drawn as" in fails(1, "-", "--dump-graph", tmp_path / "g.png", stdin=SMALL)


def test_a_run_can_be_looked_at(tmp_path: Path) -> None:
    look = ("--dump-each", tmp_path / "each", "--dump-format", "dot", "--dump-graph", tmp_path / "g.json")
    tell = ("--stats", "--sizes", "batch=3", "--report", tmp_path / "report.json")
    result = irlab_opt("-", "-p", "canonicalize", *look, *tell, stdin=SMALL)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert {path.name for path in (tmp_path / "each").iterdir()} == {"00-input.dot", "01-canonicalize.dot"}
    assert json.loads((tmp_path / "g.json").read_text())["graphs"]
    assert "FLOPs per sample at batch=3" in result.stderr and "FLOPs = batch*64" in result.stderr
    found = json.loads((tmp_path / "report.json").read_text())["statistics"]
    assert (found["flops"], found["parameters"], found["bytes"]) == ("batch*64", 32, 128)
    assert found["peak_activation_bytes"] == 3 * 4 * 4
    assert "not empty" in fails(1, "-", "--dump-each", tmp_path / "each", stdin=SMALL)
    assert "--dump-each" in fails(2, "-", "--dump-format", "dot", stdin=SMALL)
    assert "no size 'bach'" in fails(2, "-", "--stats", "--sizes", "bach=3", stdin=SMALL)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    big = SMALL.replace("f32[4, 8] = random()", "f32[400000, 1024] = random()").replace("batch, 8]", "batch, 1024]")
    big = big.replace("batch, 4]", "batch, 400000]")
    command = [sys.executable, "-m", "irlab", "-", "--emit", "onnx{layout=plain}", "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stderr is not None
        child.stdin.write(big)
        child.stdin.close()
        deadline = time.monotonic() + 60
        while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        child.wait(60)
        errors = child.stderr.read()
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "irlab", "-"]
        result = subprocess.run(command, input=SMALL, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert "No space left" in result.stderr and "Traceback" not in result.stderr
