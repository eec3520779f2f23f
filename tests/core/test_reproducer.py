"""--reproducer: one file that fails again in the same way, wherever it is, and runs nobody else's code."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import SMALL, fails, irlab_opt

import irlab
from irlab.ir import Module
from irlab.passmgr import Context, Pass, PassManager
from irlab.reproducer import FIRST_LINE, Reproducer, read_replay
from irlab.schedule import build_pipeline
from irlab.types import f32, tensor
from irlab.weight_uses import replace_weights
from irlab.weights import Array, Random, WeightSymbol

BROKEN = '''
from dataclasses import dataclass
from irlab import Context, Module, Pass, nn, prim
from irlab.types import f32

@dataclass(frozen=True)
class Broken(Pass, name="broken", exactness="exact"):
    """Fails in one of several ways."""
    how: str = "raise"

    def run(self, module: Module, ctx: Context) -> None:
        linear = module.graph.find(nn.Linear)[0]
        if self.how == "raise":
            raise KeyError(f"no luck with seed {ctx.seed} for {ctx.targets}")
        if self.how == "wrong":
            module.graph.replace(linear, prim.mul(nn.linear(linear.x, linear.weight), prim.constant(2.0, f32)))
        if self.how == "verify":
            linear.results[0].type = linear.x.type
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IRLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.py").write_text(BROKEN)
    return tmp_path


def last_line(text: str) -> str:
    return next(line for line in reversed(text.splitlines()) if "irlab-opt: error:" in line)


@pytest.mark.parametrize(
    ("how", "status", "options"),
    [("raise", 1, ["--seed", "7", "--target", "gguf"]), ("wrong", 3, ["--check=passes"]), ("verify", 3, [])],
)
def test_a_failure_is_replayed_by_the_file_alone(place: Path, how: str, status: int, options: list[str]) -> None:
    pipeline = f"canonicalize,repeat{{n=2}}(broken{{how={how}}},cse),dce"
    file = place / "failure.ir"
    first = irlab_opt("-", "--load", place / "broken.py", "-p", pipeline, *options, "--reproducer", file, stdin=SMALL)
    assert first.returncode == status, first.stderr
    assert f"reproducer: irlab-opt {file}" in first.stderr
    again = irlab_opt(file)
    assert again.returncode == status, again.stderr
    assert last_line(again.stderr) == last_line(first.stderr)
    if how == "raise":
        assert "seed 7 for ('gguf',)" in last_line(again.stderr)
    # Only the pass that failed runs, on the IR that it saw.
    text = file.read_text()
    assert text.startswith(FIRST_LINE) and "prim.mul" not in text and "canonicalize" not in text.split("irlab 1")[0]
    # What the command line says comes last.
    assert irlab_opt(file, "-p", "cse", "-q").returncode == 0


def test_nothing_is_written_when_all_is_well(place: Path) -> None:
    assert irlab_opt("-", "-p", "cse", "--reproducer", place / "r.ir", stdin=SMALL).returncode == 0
    assert not (place / "r.ir").exists()


def test_code_is_run_only_for_who_wrote_the_file(place: Path) -> None:
    file = place / "failure.ir"
    irlab_opt("-", "--load", place / "broken.py", "-p", "broken", "--reproducer", file, stdin=SMALL)
    os.environ["IRLAB_CACHE"] = str(place / "another user")
    line = fails(1, file)
    assert "broken.py, and you did not write it" in line and "--load" in line
    assert "no luck" in last_line(irlab_opt(file, "--load", place / "broken.py").stderr)


@pytest.mark.parametrize("options", ["--emit=ir -o x", "--trust-remote-code", "--force", "--load=x.py", "-o x"])
def test_a_reproducer_cannot_write_or_trust(tmp_path: Path, options: str) -> None:
    (tmp_path / "m.ir").write_text(f"{FIRST_LINE}\n// options: --passes=cse {options}\n{SMALL}")
    assert "a reproducer cannot set" in fails(1, tmp_path / "m.ir")


def test_text_that_is_no_reproducer_has_no_options(tmp_path: Path) -> None:
    for text in (SMALL, f"// hello\n{SMALL}", f'{FIRST_LINE}\n// options: "unclosed\n{SMALL}'):
        (tmp_path / "m.ir").write_text(text)
        assert read_replay(tmp_path / "m.ir") is None
    assert read_replay(tmp_path / "gone.ir") is None


class Boom(Pass, name="boom"):
    def run(self, module: Module, ctx: Context) -> None:
        raise RuntimeError("boom")


def test_random_numbers_stand_in_for_weights_that_exist_in_memory_only(tmp_path: Path) -> None:
    module = irlab.parse(SMALL)
    kind = tensor(f32, (4, 8))
    replace_weights(module.graph, {"w": WeightSymbol("w", Array(kind, np.ones((4, 8), np.float32)))})
    manager = PassManager([*build_pipeline("cse"), Boom()], Context(), [Reproducer(tmp_path / "r.ir")])
    with pytest.raises(RuntimeError):
        manager.run(module)
    assert isinstance(module.weights["w"].recipe, Array)
    assert "1 that existed in memory only: w" in (tmp_path / "r.ir").read_text()
    assert isinstance(irlab.load(tmp_path / "r.ir").weights["w"].recipe, Random)


def test_random_numbers_stand_in_for_files_that_are_not_there(place: Path) -> None:
    text = SMALL.replace("random()", 'file("gone.safetensors", "w")')
    (place / "m.ir").write_text(text)
    options = ("--load", place / "broken.py", "-p", "broken{how=wrong}", "--check=passes")
    assert "gone.safetensors" in last_line(irlab_opt(place / "m.ir", *options, "--reproducer", place / "r.ir").stderr)
    result = irlab_opt(place / "r.ir", "--passes", "broken{how=wrong}")
    assert "random numbers stand in for 1 weights" in result.stderr
    assert result.returncode == 3 and "output 'y' changed" in last_line(result.stderr)


def test_a_reproducer_may_be_moved(place: Path) -> None:
    (place / "new").mkdir()
    irlab_opt("demo", "--load", place / "broken.py", "-p", "broken", "--reproducer", place / "r.ir")
    shutil.move(place / "r.ir", place / "new" / "r.ir")
    assert "no luck" in last_line(irlab_opt(place / "new" / "r.ir").stderr)
