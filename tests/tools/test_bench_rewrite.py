"""The rewriting benchmark measures what it says, at a small size."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        return importlib.import_module("rewrite")


@pytest.mark.parametrize("index", [0, 1])
def test_rows_of_both_workloads(bench: ModuleType, index: int) -> None:
    workload = replace(bench.WORKLOADS[index], count=20)
    assert len(workload.build(20).graph.ops()) in (20 * workload.ops + 1, 20 * workload.ops + 3)
    rows = list(bench.rewriting_rows(workload, 1, peers=True, run=bench.here))
    assert {row.peer_name for row in rows} == {"goal", "half of ours without", "xdsl", "tinygrad", "onnxscript"}
    for row in rows:
        assert row.ours > 0
        assert (row.ratio is None) == (row.peer is None)
        assert row.peer is None or row.ratio == pytest.approx(row.ours / row.peer)


def test_rows_of_text(bench: ModuleType) -> None:
    rows = list(bench.text_rows(5, 1))
    assert [row.name for row in rows] == ["print IR text", "parse IR text"]


def test_the_inert_rules_are_forty(bench: ModuleType) -> None:
    rules = bench.inert_rules()
    assert len({rule.name for rule in rules}) == 40
