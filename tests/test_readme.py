"""What the README shows is what happens: its Python runs, its tables name what there is."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.S | re.M)


def test_there_are_exactly_two_set_up_commands() -> None:
    assert re.findall(r"<!-- ([\w-]+) -->\n```sh\n[^\n]+\n```", README) == ["main-job", "tests"]


def test_the_python_example_runs(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKS[0]], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").stat().st_size > 1_000_000


def test_the_custom_pass_runs(tmp_path: Path) -> None:
    (tmp_path / "my_pass.py").write_text(BLOCKS[1])
    text = """irlab 1
module "m"
graph(%x: f32[n]) {
  %0 = prim.sigmoid(%x)  : f32[n]
  %1 = prim.mul(%x, %0)  : f32[n]
  return y=%1
}
"""
    command = [sys.executable, "-m", "irlab", "-", "--load", str(tmp_path / "my_pass.py"), "-p", "my-pass"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "nn.silu(%x)" in done.stdout


@pytest.mark.parametrize("group", ["passes", "backends"])
def test_the_tables_name_every_plug_in(group: str) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = declared["project"]["entry-points"][f"irlab.{group}"]
    section = README.split(f"## {group.capitalize()}")[1].split("\n## ")[0]
    assert [name for name in names if f"`{name}" not in section] == []
