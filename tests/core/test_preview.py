"""--explain: what would run, in order, with options and reasons; what cannot run is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import SMALL, fails, irlab_opt

from irlab.preview import explain_pipeline

PRUNE = '''
from dataclasses import dataclass
from irlab import Context, Module, Pass

@dataclass(frozen=True)
class Prune(Pass, name="prune", exactness="lossy", before={"quantize": "codes have no zeros to choose from"}):
    """Zeroes small weights."""
    ratio: float = 0.5

    def run(self, module: Module, ctx: Context) -> None: ...

    def explain(self, module: Module) -> str:
        return f"would zero {self.ratio:.0%} of {len(module.weights)} weights"
'''


def test_order_options_reasons_and_promises_are_told() -> None:
    told = explain_pipeline('repeat{n=3}(canonicalize,cse),quantize{group=64}@"lm_head"{scheme=int8},kv-cache')
    lines = [line.strip() for line in told.splitlines()]
    assert [line.split()[:2] for line in lines if line[:1].isdigit()] == [
        ["1.", "repeat"],
        ["2.", "quantize"],
        ["3.", "fuse"],
        ["4.", "kv-cache"],
    ]
    assert "added: kv-cache requires it, because it looks for nn.attention" in lines
    assert "group = 64" in lines and "scheme = int4   (default)" in lines and "@lm_head{scheme=int8}" in lines
    assert any(line.startswith("rules: ") and "fuse-rms-norm" in line for line in lines)
    assert lines[-1] == "numbers: lossy, by quantize"


@pytest.mark.parametrize(
    ("pipeline", "promise"),
    [("", "no passes"), ("cse", "stay as they are"), ("repeat(fuse)", "stay close"), ("fuse,cast", "lossy, by cast")],
)
def test_the_promise_is_that_of_the_weakest_pass(pipeline: str, promise: str) -> None:
    assert promise in explain_pipeline(pipeline).splitlines()[-1]


def test_a_model_is_looked_at_but_not_changed(tmp_path: Path) -> None:
    (tmp_path / "prune.py").write_text(PRUNE)
    load = ("--load", tmp_path / "prune.py")
    result = irlab_opt("-", *load, "--explain", 'prune{ratio=0.25},quantize@"w"{group=8}', stdin=SMALL)
    assert result.returncode == 0, result.stderr
    assert "would zero 25% of 1 weights" in result.stdout
    assert "@w{group=8}   (names 1 weights and modules of this model)" in result.stdout
    assert "would zero" not in irlab_opt(*load, "--explain", "prune").stdout


def test_orders_that_cannot_work_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "prune.py").write_text(PRUNE)
    line = fails(2, "--load", tmp_path / "prune.py", "--explain", "quantize,prune")
    assert "prune cannot run after quantize: codes have no zeros to choose from" in line
    assert "put prune before quantize" in line
    assert "did you mean 'quantize'" in fails(2, "--explain", "quantise")
