"""The differential checks find what is wrong, and pass what is right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from irlab import Context, Match, Module, Pass, Rule, Value, nn, p, prim
from irlab.diff import RewriteChecker, check_pass, compare_graphs, difference
from irlab.errors import CheckError, InputError
from irlab.interp import Program
from irlab.ir import Graph, GraphBuilder
from irlab.rewrite import rewrite
from irlab.types import bf16, f32, i64
from irlab.weights import Random, WeightSymbol


def check(module: Module, rule: Rule) -> RewriteChecker:
    checker = RewriteChecker()
    assert rewrite(module.graph, [rule], check=checker).total
    return checker


def norm(dtype: str = "f32") -> Module:
    b = GraphBuilder()
    x, w = b.input("x", dtype, ("batch", "seq", 16)), b.random_weight("w", dtype, (16,))
    xf = prim.cast(x, f32)
    mean = prim.mean(prim.pow(xf, prim.constant(2.0, f32)), (-1,))
    n = prim.mul(xf, prim.rsqrt(prim.add(mean, prim.constant(1e-5, f32))))
    b.output(y=prim.mul(prim.cast(n, x.type.dtype), w))
    return b.module()


class FuseNorm(Rule):
    """A right and several wrong ways to fuse a norm."""

    def __init__(self, change: str = "") -> None:
        self.change = change

    def pattern(self, x: Any, w: Any, eps: Any) -> Any:
        xf = p.cast(x)
        n = xf * p.rsqrt(p.mean(xf**2, axes=[-1]) + p.const(eps))
        return p.cast(n) * w

    def rewrite(self, m: Match) -> Value:
        if self.change == "eps":
            return nn.rms_norm(m.x, m.w, eps=0.5)
        if self.change == "weight":
            return nn.rms_norm(m.x, None, eps=m.eps)
        return nn.rms_norm(m.x, m.w, eps=m.eps)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_right_rewrite_passes(dtype: str) -> None:
    checker = check(norm(dtype), FuseNorm())
    assert checker.checked == 1 and not checker.skipped


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("change", ["eps", "weight"])
def test_a_wrong_rewrite_is_found_and_named_before_it_is_made(change: str, dtype: str) -> None:
    module = norm(dtype)
    before = str(module)
    with pytest.raises(CheckError, match=r"fuse-norm at prim\.mul changed: largest difference"):
        check(module, FuseNorm(change))
    assert str(module) == before


class Halve(Rule):
    """x * 0.5 -> x / 2, or, wrongly, x / 4"""

    def __init__(self, by: float) -> None:
        self.by = by

    def pattern(self, x: Any) -> Any:
        return x * 0.5

    def rewrite(self, m: Match) -> Value:
        return prim.div(m.x, prim.constant(self.by, m.x.type.dtype))


@pytest.mark.parametrize("by", [2.0, 4.0])
def test_indices_that_enter_a_piece_stay_in_range(by: float) -> None:
    class AfterLookup(Halve):
        def pattern(self, ids: Any, table: Any) -> Any:  # type: ignore[override]
            return p.embedding(ids, table).named("e") * 0.5

        def rewrite(self, m: Match) -> Value:
            return prim.div(m.e, prim.constant(self.by, f32))

    b = GraphBuilder()
    ids = prim.reshape(b.input("ids", "i64", ("batch", "seq")), (b.module().graph.inputs[0].type.size,))
    b.output(y=prim.mul(nn.embedding(ids, b.random_weight("t", "f32", (2, 4))), prim.constant(0.5, f32)))
    if by == 4.0:
        with pytest.raises(CheckError):
            check(b.module(), AfterLookup(by))
    else:
        assert check(b.module(), AfterLookup(by)).checked == 1


def test_a_rule_may_rely_on_what_lies_before_its_match() -> None:
    class Positive(Rule):
        """abs(x) -> x where x was seen to be an exponential"""

        def pattern(self, x: Any) -> Any:
            return p.abs(x)

        def where(self, m: Match) -> bool | str:
            return m.x.op is not None and m.x.op.opname == "prim.exp"

        def rewrite(self, m: Match) -> Value:
            return m.x

    b = GraphBuilder()
    b.output(y=prim.neg(prim.abs(prim.exp(b.input("x", "f32", ("n",))))))
    assert check(b.module(), Positive()).checked == 1


def test_a_rule_may_use_a_value_computed_elsewhere() -> None:
    class Reuse(Rule):
        """exp(x) + 0.0 -> the other exp(x)"""

        def __init__(self, other: Value) -> None:
            self.other = other

        def pattern(self, x: Any) -> Any:
            return p.exp(x) + 0.0

        def rewrite(self, m: Match) -> Value:
            return self.other

    for build, right in ((prim.exp, True), (prim.neg, False)):
        b = GraphBuilder()
        x = b.input("x", "f32", ("n",))
        other = b.add(build(x))
        b.output(y=prim.add(prim.exp(x), prim.constant(0.0, f32)), z=other)
        if right:
            assert check(b.module(), Reuse(other)).checked == 1
        else:
            with pytest.raises(CheckError):
                check(b.module(), Reuse(other))


def test_roots_and_logarithms_are_tried_on_positive_numbers_too() -> None:
    class LogOfSqrt(Rule):
        """log(sqrt(x)) -> log(x), which is wrong, but nan on half of all normal numbers"""

        def pattern(self, x: Any) -> Any:
            return p.log(p.sqrt(x))

        def rewrite(self, m: Match) -> Value:
            return prim.log(m.x)

    b = GraphBuilder()
    b.output(y=prim.log(prim.sqrt(b.input("x", "f32", ()))))
    for seed in range(4):
        with pytest.raises(CheckError):
            rewrite(b.module().clone().graph, [LogOfSqrt()], check=RewriteChecker(seed))


class NewWeight(Rule):
    """linear(x, w) -> linear(x, another weight)"""

    def __init__(self, new: WeightSymbol) -> None:
        self.new = new

    def pattern(self, x: Any, w: Any) -> Any:
        return -p.linear(x, w)

    def rewrite(self, m: Match) -> Value:
        return nn.linear(prim.neg(m.x), prim.weight(self.new))


def test_new_weights_are_compared_by_their_real_numbers() -> None:
    def module() -> Module:
        b = GraphBuilder()
        b.output(y=prim.neg(nn.linear(b.input("x", "f32", ("n", 4)), b.random_weight("w", "f32", (3, 4), seed=5))))
        return b.module()

    type = next(iter(module().weights.values())).type
    assert check(module(), NewWeight(WeightSymbol("v", Random(type, 5)))).checked == 1
    with pytest.raises(CheckError):
        check(module(), NewWeight(WeightSymbol("v", Random(type, 6))))


def test_a_piece_that_cannot_be_run_is_counted_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irlab.diff.rewrites.MAX_PIECE_BYTES", 8)
    checker = check(norm(), FuseNorm())
    assert checker.checked == 0 and list(checker.skipped.values()) == [1]


def test_difference_treats_nan_as_equal_and_infinity_as_far() -> None:
    nan, inf = float("nan"), float("inf")
    assert difference(torch.tensor([nan, 1.0]), torch.tensor([nan, 1.0])).identical
    assert difference(torch.tensor([inf]), torch.tensor([inf])).identical
    assert difference(torch.tensor([nan, 1.0]), torch.tensor([0.0, 1.0])).relative == inf
    assert difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 3.0])).relative == 0.25
    assert difference(torch.zeros(2), torch.zeros(3)).relative == inf


def scaled(by: float, dtype: str = "f32") -> Module:
    b = GraphBuilder()
    x = b.input("x", dtype, ("batch", 4))
    b.output(logits=prim.mul(x, prim.constant(by, x.type.dtype)))
    return b.module()


@dataclass(frozen=True)
class Rescale(Pass, name="test-rescale", exactness="close", rtol=1e-2):
    """Multiplies by something."""

    by: float = 1.0

    def run(self, module: Module, ctx: Context) -> None:
        module.graph.set_outputs(scaled(self.by).graph.outputs)


@dataclass(frozen=True)
class LossyRescale(Rescale, name="test-lossy-rescale", exactness="lossy"):
    """As above, but says that it loses something."""


def test_a_pass_is_held_to_the_exactness_that_it_declares() -> None:
    before = scaled(1.0)
    assert str(check_pass(before, scaled(1.0), Rescale())) == "identical"
    assert 0 < check_pass(before, scaled(1.005), Rescale()).metrics["max_abs_diff"] < 0.05
    with pytest.raises(CheckError, match="output 'logits' changed"):
        check_pass(before, scaled(1.05), Rescale())
    found = check_pass(before, scaled(1.05), LossyRescale())
    assert 0 < found.metrics["kl"] < 0.01 and found.metrics["top1"] == 1.0
    assert "KL" in str(found)
    assert check_pass(before, scaled(-1.0), LossyRescale()).metrics["top1"] < 0.5


def test_checks_compute_on_the_device_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    initialise = Program.__init__

    def recorded(self: Program, *args: Any, device: str = "cpu", **keywords: Any) -> None:
        devices.append(device)
        initialise(self, *args, **keywords)

    monkeypatch.setattr(Program, "__init__", recorded)
    for step in (Rescale(), LossyRescale()):
        check_pass(scaled(1.0), scaled(1.0), step, device="cuda")
    assert rewrite(norm().graph, [FuseNorm()], check=RewriteChecker(device="cuda")).total
    assert len(devices) == 6 and set(devices) == {"cuda"}


def test_a_model_too_large_to_run_is_refused() -> None:
    b = GraphBuilder()
    b.output(y=nn.linear(b.input("x", "f32", ("n", 20000)), b.random_weight("w", "f32", (20000, 20000))))
    with pytest.raises(InputError, match="400 million parameters"):
        check_pass(b.module(), b.module(), Rescale())


def test_graphs_are_compared_on_the_outputs_that_both_have() -> None:
    def graph(**extra: Any) -> Graph:
        g = Graph()
        x = g.input("x", scaled(1.0).graph.inputs[0].type)
        g.set_outputs({"y": prim.add(x, x), **{n: f(x) for n, f in extra.items()}})
        return g

    inputs = {"x": torch.ones(2, 4)}
    assert compare_graphs(graph(a=prim.neg), graph(b=prim.exp), inputs).identical
    with pytest.raises(CheckError, match="output 'a' changed"):
        compare_graphs(graph(a=prim.neg), graph(a=prim.exp), inputs)
    other = graph()
    other.set_outputs({"z": other.inputs[0]})
    with pytest.raises(CheckError, match="share no output"):
        compare_graphs(graph(), other, inputs)
    assert bf16 is not i64


def test_sizes_that_no_input_of_a_piece_tells_are_chosen() -> None:
    class NegNeg(Rule):
        """-(-x) -> x"""

        def pattern(self, x: Any) -> Any:
            return p.neg(p.neg(x))

        def rewrite(self, m: Match) -> Value:
            return m.x

    b = GraphBuilder()
    seq = b.input("x", "f32", ("seq",)).type.shape[0]
    b.output(y=prim.neg(prim.neg(prim.iota(seq, i64))))
    assert check(b.module(), NegNeg()).checked == 1


WRONG_PASS = '''
from dataclasses import dataclass
from irlab import Rule, p, prim
from irlab.passmgr import RulePass


class Wrong(Rule):
    """x + x -> x"""

    def pattern(self, x):
        return x + x

    def rewrite(self, m):
        return m.x


@dataclass(frozen=True)
class WrongPass(RulePass, name="test-wrong"):
    """Forgets a factor of two."""

    def rules(self):
        return [Wrong()]
'''


@pytest.mark.parametrize(("mode", "status"), [("off", 0), ("rewrites", 3), ("passes", 3)])
def test_the_command_line_checks_when_told_to(
    mode: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from irlab.cli import main

    (tmp_path / "wrong.py").write_text(WRONG_PASS)
    b = GraphBuilder()
    x = b.input("x", "f32", ("n",))
    b.output(y=prim.add(x, x))
    (tmp_path / "m.ir").write_text(str(b.module()))
    command = [str(tmp_path / "m.ir"), "--load", str(tmp_path / "wrong.py"), "-p", "test-wrong", f"--check={mode}"]
    assert main(command) == status
    if status:
        told = capsys.readouterr().err
        *sides, line = told.splitlines()
        assert "test-wrong" in line if mode == "passes" else "wrong at prim.add changed" in line
        assert "changed: largest difference" in line
        # Both sides as IR: the piece that a rule saw and made, or the difference that a pass made.
        assert any("prim.add(%x" in side for side in sides)
        assert "// ---- its replacement" in sides if mode == "rewrites" else "+++ after" in sides
