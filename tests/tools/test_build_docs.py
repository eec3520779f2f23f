"""The reference is what the docstrings and declarations say now, and these say something about everything."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType

import pytest

from irlab.cli.options import build_parser

TOOLS = Path(__file__).parents[2] / "tools"
NAMES = ("passes.md", "ops.md", "backends.md", "weights.md", "options.md", "cli.md")


@pytest.fixture(scope="module")
def build_docs() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        return importlib.import_module("build_docs")


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_up_to_date(build_docs: ModuleType, name: str) -> None:
    assert tuple(build_docs.PAGES) == NAMES
    written = (build_docs.REFERENCE / name).read_text(encoding="utf-8")
    assert written == build_docs.PAGES[name](), f"docs/reference/{name} is out of date: run {build_docs.COMMAND}"


def test_every_option_of_the_command_line_is_explained() -> None:
    silent = [a.option_strings for g in build_parser()._action_groups for a in g._group_actions if not a.help]
    assert silent == []


def test_every_option_is_named_in_the_docstring_of_its_pass_or_backend(build_docs: ModuleType) -> None:
    silent = [
        f"{name}: {option.text_name}"
        for group in ("passes", "backends")
        for name, cls in build_docs.plugins(group).items()
        for option in cls.options()
        if option.text_name not in (cls.__doc__ or "") and option.field not in (cls.__doc__ or "")
    ]
    assert silent == []


def test_markup_in_prose_is_escaped(build_docs: ModuleType) -> None:
    class Strange:
        """x * y < z, but `x * y` is code.

            x * y
        * an item
        """

    assert build_docs.docstring(Strange).splitlines() == [
        "x \\* y \\< z, but `x * y` is code.",
        "",
        "    x * y",
        "* an item",
    ]


def test_actions_without_names_or_with_several_words(build_docs: ModuleType) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--pair", nargs=2, metavar=("A", "B"), help="two | of them")
    parser.add_argument("--kind", choices=("a", "b"), help="which")
    rows = build_docs._actions(parser._actions).splitlines()[2:]
    assert rows == ["| `--pair` `A B` | two \\| of them |", "| `--kind` `a\\|b` | which |"]
