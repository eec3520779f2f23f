"""The benchmark of the encoders measures what it says, at a small size."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench"


def test_rows_of_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only for the import: gguf.py beside the benchmark must not stand for the package.
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        bench = importlib.import_module("quant_speed")
    out = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["quant_speed", "--megabytes", "1", "--types", "q4_k", "--json", str(out)])
    bench.main()
    rows = json.loads(out.read_text())
    assert [(row["name"], row["metric"]) for row in rows] == [
        (name, metric)
        for name in ("q4_k", "q4_k with importances")
        for metric in ("megabytes_per_cpu_second", "weighted_error")
    ]
    for row in rows:
        speed = row["metric"] == "megabytes_per_cpu_second"
        ratio = row["ours"] / row["peer"] if speed else row["peer"] / row["ours"]
        assert row["ratio"] == pytest.approx(ratio) and row["peer_name"]
    assert all(row["ratio"] >= 1 for row in rows if row["metric"] == "weighted_error")
