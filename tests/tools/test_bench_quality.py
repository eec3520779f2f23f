"""The quality benchmark measures what it says: the same bytes, the same text, and the decoded files."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def bench() -> Iterator[ModuleType]:
    # At the end of the path: gguf.py beside the benchmark must not stand for the package.
    added = [str(TOOLS / "bench"), str(TOOLS)]
    before = sys.path[:]
    sys.path += added
    yield importlib.import_module("quality")
    sys.path[:] = before


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Options that name two different texts."""
    made = []
    for option, names in (("calibration", ["Tim", "Ann", "Sue"]), ("text", ["Max", "Lily", "Ben"])):
        file = tmp_path / f"{option}.txt"
        toys = ["ball", "kite", "doll", "big red car", "little book"]
        story = "Once upon a time, {0} had a {1}.\n\n{0} loved the {1} very much and played with it all day.\n"
        file.write_text("".join(story.format(name, toy) for toy in toys for name in names) * 2, "utf-8")
        made += [f"--{option}", str(file)]
    return made


def rows(bench: ModuleType, tmp_path: Path, *options: str) -> list[dict[str, object]]:
    out = tmp_path / "rows.json"
    small = ["--stories", "demo", "--calibration-tokens", "1024", "--tokens", "512", "--length", "128"]
    assert bench.main([*small, *options, "--json", str(out)]) == 0
    found: list[dict[str, object]] = json.loads(out.read_text())
    return found


def test_files_of_llama_cpp_beside_ours(bench: ModuleType, texts: list[str], tmp_path: Path) -> None:
    import llama_quantizer

    try:
        llama_quantizer.library_folder()
    except LookupError as reason:
        pytest.skip(str(reason))
    (row,) = rows(bench, tmp_path, *texts, "--squeeze", "--gguf", "q2_k")
    assert row["name"] == "demo q2_k gptq" and "llama.cpp" in str(row["peer_name"])
    assert abs(row["bytes"] - row["peer_bytes"]) < 100  # type: ignore[operator]
    assert 0.01 < row["ours"] < row["peer"] < 2  # type: ignore[operator]
    assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])  # type: ignore[operator]


def test_integers_beside_rounding(bench: ModuleType, texts: list[str], tmp_path: Path) -> None:
    found = rows(bench, tmp_path, *texts, "--schemes", "int3")
    assert [row["name"] for row in found] == [f"demo int3 g32 {kind} gptq" for kind in ("sym", "sym", "asym", "asym")]
    assert all(0 < row["ours"] < row["peer"] for row in found)  # type: ignore[operator]


def test_pipelines_beside_the_first(
    bench: ModuleType, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = rows(
        bench, tmp_path, *texts, "--pipelines", "quantize{scheme=int3}", "quantize{scheme=int3},correct{rank=64}"
    )
    assert row["peer_name"] == "quantize{scheme=int3}" and row["bytes"] > row["peer_bytes"]  # type: ignore[operator]
    assert 0 < row["ours"] < 0.8 * row["peer"]  # type: ignore[operator]
    with pytest.raises(SystemExit):
        bench.main(["--stories", "demo", *texts, "--pipelines", "quantize"])
    assert "compares several with the first" in capsys.readouterr().err


def test_nothing_to_measure_is_said(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--stories", "demo"])
    assert "nothing to measure" in capsys.readouterr().err
