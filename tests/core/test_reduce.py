"""--reduce: a small module on which the command still fails in the same way."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from command_line import SMALL, fails, irlab_opt
from hypothesis import given
from hypothesis import strategies as st

import irlab
from irlab.ir import Module, Op
from irlab.ops import nn, prim
from irlab.pipeline import parse_pipeline
from irlab.reduce import PIPELINE_STRATEGIES, STRATEGIES, Command, ddmin
from irlab.reduce.pieces import movable
from irlab.reduce.strategies import bypass_ops, cut_ops, drop_options, open_repeats, shrink_regions
from irlab.verify import verify

BUGGY = '''
from dataclasses import dataclass
from irlab import Context, Module, Pass, nn

@dataclass(frozen=True)
class Buggy(Pass, name="buggy"):
    """Fails on a gated MLP behind a norm."""
    n: int = 1

    def run(self, module: Module, ctx: Context) -> None:
        for op in module.graph.find(nn.GatedMLP):
            if isinstance(op.x.op, nn.RMSNorm):
                raise ValueError("no MLP behind a norm")
'''


@given(st.sets(st.integers(0, 40)), st.integers(1, 41))
def test_ddmin_finds_exactly_what_matters(needed: set[int], count: int) -> None:
    needed = {n for n in needed if n < count}
    asked = 0

    def fails(some: Sequence[int]) -> bool:
        nonlocal asked
        asked += 1
        return needed <= set(some)

    assert ddmin(range(count), fails) == sorted(needed)
    assert asked <= count**2 + 3 * count + 1


def test_ddmin_is_quick_where_little_matters() -> None:
    asked = []
    assert ddmin(range(1000), lambda some: bool(asked.append(1)) or 777 in some) == [777]
    assert len(asked) < 40


@given(st.lists(st.integers(0, 9), max_size=12), st.data())
def test_ddmin_gives_a_set_from_which_nothing_can_be_left_out(items: list[int], data: st.DataObject) -> None:
    answers: dict[tuple[int, ...], bool] = {tuple(range(len(items))): True}
    fails: Callable[[Sequence[int]], bool] = lambda some: answers.setdefault(tuple(some), data.draw(st.booleans()))
    found = ddmin(range(len(items)), fails)
    assert fails(found) and all(not fails([x for x in found if x != y]) for y in found if len(found) > 1)


CHAIN = """irlab 1
module "m" {licence="mit"}
@w : f32[8, 8] = file("gone.safetensors", "w")
graph(%x: f32[n, 8], %y: f32[n, 8]) {
  %0 = prim.exp(%x)        : f32[n, 8]  loc("a")
  %1 = prim.neg(%0)        : f32[n, 8]  loc("b")
  %2 = prim.add(%1, %y)    : f32[n, 8]  loc("c")
  %3 = nn.linear(%2, @w)   : f32[n, 8]  loc("d")
  %4 = prim.sqrt(%3)       : f32[n, 8]  loc("e")
  %5 = prim.sum(%4) {axes=[-1]} : f32[n, 1]
  return out=%4, sum=%5
}
"""


def has(*classes: type[Op]) -> Callable[[Module], bool]:
    def fails(module: Module) -> bool:
        verify(module)
        return all(module.graph.find(cls) for cls in classes)

    return fails


def names(module: Module) -> list[str]:
    return [op.opname for op in movable(module.graph)]


def test_cutting_leaves_the_ops_that_matter_with_new_inputs() -> None:
    module = cut_ops(irlab.parse(CHAIN), has(prim.Neg, nn.Linear))
    assert names(module) == ["prim.neg", "nn.linear"]
    assert len(module.graph.inputs) == 2 and len(module.graph.outputs) == 2
    assert [str(v.type) for v in module.graph.inputs] == ["f32[n, 8]"] * 2


def test_bypassing_keeps_what_is_left_connected() -> None:
    def fails(module: Module) -> bool:
        roots: list[Op] = [*module.graph.find(prim.Sqrt)]
        found = []
        while roots:
            op = roots.pop()
            found.append(type(op))
            roots += [v.op for v in op.operands if v is not None and v.op is not None]
        return {prim.Exp, prim.Sqrt} <= set(found)

    module = bypass_ops(irlab.parse(CHAIN), fails)
    verify(module)
    assert names(module) == ["prim.exp", "prim.sqrt"]
    assert [v.name for v in module.graph.inputs] == ["x"] and set(module.graph.outputs) == {"out"}


def test_every_strategy_keeps_the_failure_and_the_rules_of_the_ir() -> None:
    fails = has(prim.Add, prim.Sqrt)
    module = irlab.parse(CHAIN)
    for strategy in STRATEGIES:
        smaller = strategy(module, fails)
        verify(smaller)
        assert fails(smaller) and len(str(smaller)) <= len(str(module)) + 40
        module = smaller
    text = str(module)
    assert "licence" not in text and "loc(" not in text and "gone.safetensors" not in text
    assert str(irlab.parse(text)) == text


def test_all_may_go() -> None:
    module = cut_ops(irlab.parse(CHAIN), lambda module: True)
    assert names(module) == [] and str(irlab.parse(str(module))) == str(module)


def test_regions_shrink() -> None:
    text = """irlab 1
module "m"
graph(%c: bool[], %x: f32[4]) {
  %0 = ctl.if(%c, %x) : f32[4]
    then(%a: f32[4]) {
      %0 = prim.exp(%a)  : f32[4]
      %1 = prim.neg(%0)  : f32[4]
      %2 = prim.sqrt(%1) : f32[4]
      return y=%2
    }
    else(%a: f32[4]) {
      %0 = prim.cos(%a)  : f32[4]
      return y=%0
    }
  return y=%0
}
"""

    def fails(module: Module) -> bool:
        verify(module)
        return "prim.neg" in str(module)

    module = irlab.parse(text)
    for _ in range(2):
        module = shrink_regions(module, fails)
    shown = str(module)
    assert "prim.neg" in shown and not any(name in shown for name in ("exp", "sqrt", "cos"))


def test_pipelines_shrink() -> None:
    steps = parse_pipeline('a{x=1 y=2}@"p"{z=3},repeat{n=3}(b,c{k="v w"}),d')
    assert ",".join(map(str, steps)) == 'a{x=1 y=2}@p{z=3},repeat{n=3}(b,c{k="v w"}),d'
    fails = lambda some: "c{" in ",".join(map(str, some)) and "k=" in ",".join(map(str, some))
    shrunk: Sequence[object] = steps
    for strategy in PIPELINE_STRATEGIES:
        shrunk = strategy(shrunk, fails)  # type: ignore[arg-type]
    assert [str(step) for step in shrunk] == ['c{k="v w"}']
    assert [str(s) for s in open_repeats(steps, lambda some: True)] == ["a{x=1 y=2}@p{z=3}", "b", 'c{k="v w"}', "d"]
    assert str(drop_options(steps, lambda some: "y=2" in str(some[0]))[0]) == "a{y=2}"


@pytest.mark.parametrize(
    ("text", "pipeline", "changed"),
    [
        ("irlab-opt {} -p a{n=1},b -q", "a{n=1},b", "irlab-opt {} -p c -q"),
        ("irlab-opt --passes=a{n=1} {}", "a{n=1}", "irlab-opt --passes=c {}"),
        ("sh -c 'grep x {}'", None, ""),
    ],
)
def test_the_pipeline_of_a_command_is_found(text: str, pipeline: str | None, changed: str) -> None:
    command = Command.parse(text, 1)
    assert command.pipeline == pipeline
    if pipeline:
        assert str(command.with_pipeline("c")) == changed


def test_a_fused_graph_is_reduced_to_the_two_ops_that_a_pass_stumbles_over(tmp_path: Path) -> None:
    (tmp_path / "buggy.py").write_text(BUGGY)
    fused, small = tmp_path / "fused.ir", tmp_path / "small.ir"
    assert irlab_opt("demo", "-p", "fuse", "-o", fused).returncode == 0
    pipeline = "repeat{n=3}(canonicalize,cse),buggy{n=3},dce"
    command = f"irlab-opt {{}} --load {shlex.quote(str(tmp_path / 'buggy.py'))} -p '{pipeline}'"
    result = irlab_opt("--reduce", command, "--reduce-match", "no MLP behind a norm", fused, "-o", small)
    assert result.returncode == 0, result.stderr
    module = irlab.load(small)
    assert names(module) == ["nn.rms_norm", "nn.gated_mlp"]
    assert "to 2 ops and -p 'buggy'" in result.stderr
    text = small.read_text()
    assert text.startswith("// fails: irlab-opt {} ") and "model.safetensors" not in text
    again = irlab_opt(small, "--load", tmp_path / "buggy.py", "-p", "buggy")
    assert again.returncode == 1 and "no MLP behind a norm" in again.stderr


def test_a_reproducer_is_reduced_with_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.py").write_text(BUGGY.replace("nn.GatedMLP", "nn.Linear").replace("nn.RMSNorm", "object"))
    load = ("--load", tmp_path / "broken.py")
    irlab_opt("-", *load, "-p", "cse,buggy", "--reproducer", tmp_path / "r.ir", stdin=SMALL.replace("%x,", "%x,", 1))
    text = (tmp_path / "r.ir").read_text()
    assert "prim.mul" in text
    result = irlab_opt("--reduce", "irlab-opt {}", tmp_path / "r.ir")
    assert result.returncode == 0, result.stderr
    assert "nn.linear" in result.stdout and "--passes=buggy" in result.stdout


def test_what_cannot_be_reduced_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.ir").write_text(SMALL)
    assert "does not fail on INPUT" in fails(2, "--reduce", "irlab-opt {} -p cse", tmp_path / "m.ir")
    assert "write {}" in fails(2, "--reduce", "irlab-opt -p cse", tmp_path / "m.ir")
    assert "no-such-program" in fails(2, "--reduce", "no-such-program {}", tmp_path / "m.ir")
    command = "irlab-opt {} -p kv-cache"
    assert "without printing 'nonsense'" in fails(
        2, "--reduce", command, "--reduce-match", "nonsense", tmp_path / "m.ir"
    )
    assert "needs an INPUT" in fails(2, "--reduce", command)


def test_a_command_that_hangs_counts_as_failing_in_that_way(tmp_path: Path) -> None:
    (tmp_path / "m.ir").write_text(CHAIN)
    hang = "import sys, time; text = open(sys.argv[1]).read(); time.sleep(60 if 'prim.neg' in text else 0)"
    command = shlex.join([sys.executable, "-c", hang, "{}"])
    result = irlab_opt("--reduce", command, "--reduce-timeout", "0.5", tmp_path / "m.ir")
    assert result.returncode == 0, result.stderr
    assert names(irlab.parse(result.stdout)) == ["prim.neg"]


def test_an_interrupted_search_keeps_the_best_so_far(tmp_path: Path) -> None:
    (tmp_path / "m.ir").write_text(CHAIN)
    slow = "import sys, time; text = open(sys.argv[1]).read(); time.sleep(0.3); sys.exit(9 * ('prim.neg' in text))"
    command = [sys.executable, "-m", "irlab", "--reduce", shlex.join([sys.executable, "-c", slow, "{}"])]
    out = tmp_path / "small.ir"
    with subprocess.Popen([*command, tmp_path / "m.ir", "-o", out], stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        deadline = time.monotonic() + 60
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        child.wait(60)
        errors = child.stderr.read()
    assert child.returncode == 130, errors
    assert "Traceback" not in errors and "the smallest so far" in errors
    text = out.read_text()
    assert text.startswith("// fails: ") and "licence" not in text
    assert "prim.neg" in names(irlab.parse(text))
