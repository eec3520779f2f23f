"""The house rules that tools can check: who may import whom, and that start-up stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = [
    f
    for f in sorted((ROOT / "irlab").rglob("*.py"))
    if not {"passes", "frontends", "backends"} & set(f.relative_to(ROOT).parts)
]
PLUGINS = [f for name in ("passes", "frontends", "backends") for f in sorted((ROOT / name).rglob("*.py"))]


def imports(file: Path) -> set[str]:
    """The absolute names that a file imports anywhere; relative ones count from its package."""
    package = ["irlab", *file.relative_to(ROOT / "irlab").parts[:-1]] if file.is_relative_to(ROOT / "irlab") else []
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
    return found


@pytest.mark.parametrize("file", CORE, ids=lambda f: str(f.relative_to(ROOT)))
def test_the_core_imports_no_plug_in(file: Path) -> None:
    forbidden = ("irlab.passes", "irlab.frontends", "irlab.backends", "passes", "frontends", "backends")
    assert not [name for name in imports(file) if name.startswith(forbidden) and not name.startswith("passes_")]


@pytest.mark.parametrize("file", PLUGINS, ids=lambda f: str(f.relative_to(ROOT)))
def test_plug_ins_reach_other_kinds_through_the_registry(file: Path) -> None:
    own = file.relative_to(ROOT).parts[0]
    others = tuple(f"irlab.{name}" for name in ("passes", "frontends", "backends") if name != own)
    assert not [name for name in imports(file) if name.startswith(others)]


def test_every_file_says_which_question_it_answers() -> None:
    silent = [f for f in CORE + PLUGINS if not ast.get_docstring(ast.parse(f.read_text(encoding="utf-8")))]
    assert silent == []


def test_importing_irlab_is_light() -> None:
    heavy = "{'torch', 'transformers', 'onnx'}"
    code = f"import sys, irlab, irlab.ir, irlab.passmgr, irlab.registry; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
