"""The benchmark of targets: it builds, runs, and writes rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "bench" / "targets.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_rows_of_two_targets(tmp_path: Path) -> None:
    done = bench("--targets", "gguf,onnx cpu", "--tokens", "5", "--repeats", "1", "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {(row["name"], row["metric"]) for row in rows} >= {("gguf", "bytes"), ("onnx cpu", "tokens/s")}
    assert all(set(row) == {"name", "metric", "ours", "peer_name", "peer", "ratio"} for row in rows)
    bytes_of = {row["name"]: row for row in rows if row["metric"] == "bytes"}
    # int4 matrices and bf16 tables, against bf16.
    assert 1.5 < bytes_of["gguf"]["ratio"] < 4 and 1.5 < bytes_of["onnx cpu"]["ratio"] < 4
    assert "gguf" in done.stdout and "onnx cpu" in done.stdout


@pytest.mark.parametrize("arguments", [("--targets", "ggml"), ("no-such-model", "--targets", "gguf")])
def test_what_cannot_be_built_is_said(arguments: tuple[str, ...]) -> None:
    done = bench(*arguments)
    assert done.returncode in (1, 2)
    assert "no target 'ggml'" in done.stderr or "no-such-model does not exist" in done.stdout
