"""The structural benchmark: its recipes can be run, and its text is the text of the protocol."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import irlab
from irlab.schedule import build_pipeline

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def bench() -> Iterator[ModuleType]:
    # At the end of the path: gguf.py beside the benchmark must not stand for the package.
    before = sys.path[:]
    sys.path += [str(TOOLS / "bench"), str(TOOLS)]
    yield importlib.import_module("structural")
    sys.path[:] = before


def test_every_recipe_is_a_pipeline(bench: ModuleType) -> None:
    for recipe in bench.RECIPES:
        assert build_pipeline(recipe.pipeline.replace("{valid}", "valid.txt"))
        assert recipe.model in ("smollm2", "minilm")
    rows = [(recipe.model, recipe.name) for recipe in bench.RECIPES]
    assert len(set(rows)) == len(rows)


def test_the_text_is_as_it_is_written(bench: ModuleType, tmp_path: Path) -> None:
    raw = "It was ( in 1 @,@ 000 @-@ fold ) the man 's own , he did n't <unk> know . <eos>"
    assert bench.clean(raw) == "It was (in 1,000-fold) the man's own, he didn't  know. "
    file = tmp_path / "text.txt"
    file.write_text("Once upon a time there was a dog . " * 400, "utf-8")
    found = bench.windows(irlab.load("demo"), file, 4)
    assert found.shape == (4, bench.LENGTH) and found.dtype == np.int64
