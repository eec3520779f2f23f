"""--load FILE.py: scratch passes are used like installed ones, and what is wrong with the file is one line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import command_line
import pytest

MODULE = """irlab 1
module "m"
graph(%x: f32[n]) {
  %0 = prim.neg(%x)
  %1 = prim.neg(%0)
  return y=%1
}
"""

SCRATCH = '''"""Scratch passes."""
from dataclasses import dataclass

from irlab import Match, Pass, Rule, Value, p
from irlab.passmgr import RulePass


class TwiceNegated(Rule):
    """-(-x)  ->  x"""

    def pattern(self, x):
        return p.neg(p.neg(x))

    def rewrite(self, m: Match) -> Value:
        return m.x


@dataclass(frozen=True)
class Scratch(RulePass, name="scratch"):
    """Takes two negations away."""

    times: int = 1

    def rules(self):
        return [TwiceNegated()]


@dataclass(frozen=True)
class MyCSE(Pass, name="cse"):
    """My own cse."""

    def run(self, module, ctx):
        print("my own cse runs")
'''


def irlab_opt(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command_line.irlab_opt(*arguments, stdin=MODULE, cwd=folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scratch.py").write_text(SCRATCH)
    return tmp_path


def test_a_loaded_pass_is_listed_described_run_and_explained(folder: Path) -> None:
    load = ("--load", "scratch.py")
    assert "Takes two negations away." in irlab_opt(folder, *load, "--list-passes").stdout
    assert "times" in irlab_opt(folder, *load, "--help-pass", "scratch").stdout
    assert "prim.neg" not in irlab_opt(folder, *load, "-", "-p", "scratch{times=2}", "--check=rewrites").stdout
    shown = irlab_opt(folder, *load, "-", "-p", "scratch", "--why-not", "twice-negated")
    assert shown.returncode == 0 and "twice-negated" in shown.stdout


def test_a_loaded_pass_wins_over_an_installed_one(folder: Path) -> None:
    assert "my own cse runs" in irlab_opt(folder, "--load", "scratch.py", "-", "-p", "cse").stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = (\n", "bad.py:2: SyntaxError: '(' was never closed"),
        ("def f():\n    return missing\n\n\nf()\n", "bad.py:2: NameError: name 'missing' is not defined"),
        ("import not_there\n", "bad.py:1: ModuleNotFoundError: No module named 'not_there'"),
        ("raise ValueError('two\\nlines')\n", "bad.py:1: ValueError: two"),
        ("from irlab import p\nq = p.nonsense\n", "bad.py:2: AttributeError: no op is called 'nonsense'"),
    ],
)
def test_what_is_wrong_with_the_file_is_one_line_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    done = irlab_opt(tmp_path, "--load", "bad.py", "-")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"irlab-opt: error: {said}")


def test_a_file_may_import_its_neighbour_which_hides_no_package(folder: Path) -> None:
    (folder / "more.py").write_text("from rich import print\nfrom scratch import TwiceNegated\n")
    (folder / "rich.py").write_text("raise RuntimeError('the wrong rich')\n")
    done = irlab_opt(folder.parent, "--load", f"{folder.name}/more.py", "-")
    assert done.returncode == 0, done.stderr


def test_what_is_no_python_file(tmp_path: Path) -> None:
    for name in ("missing.py", "."):
        done = irlab_opt(tmp_path, "--load", name, "-")
        assert done.returncode == 1 and f"{name} is not a Python file" in done.stderr
