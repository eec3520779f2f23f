"""The tree of spans: nesting, failures, what the table and the report show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import SMALL, irlab_opt

from irlab.timing import Clock, Span, timing_table


def test_spans_nest_and_are_measured_where_the_block_fails() -> None:
    clock = Clock()
    with pytest.raises(ZeroDivisionError), clock.span("outer"), clock.span("inner"):
        sum(range(100_000))
        1 / 0  # noqa: B018
    with clock.span("after"):
        pass
    total = clock.total()
    assert [child.name for child in total.children] == ["outer", "after"]
    (outer, _) = total.children
    assert total.seconds >= outer.seconds >= outer.children[0].seconds > 0
    assert outer.children[0].cpu_seconds > 0


def test_rules_that_did_nothing_share_a_line() -> None:
    work = Span(
        "fuse", 2.0, 2.0, 1, 0, (5, 4), [Span("a", 1.0, 1.0, 1), Span("b", 0.25, 0.25, 0), Span("c", rewrites=0)]
    )
    table = timing_table(Span("total", 4.0, 4.0, children=[work]))
    assert "2 rules that did not apply" in table and "0.250" in table
    assert "5 -> 4" in table and "50%" in table


def test_the_report_holds_the_tree(tmp_path: Path) -> None:
    pipeline = "repeat{n=2}(canonicalize,cse)"
    result = irlab_opt(
        "-", "-p", pipeline, "--timing", "--report", tmp_path / "r.json", "-o", tmp_path / "o.ir", stdin=SMALL
    )
    assert result.returncode == 0, result.stderr
    total = json.loads((tmp_path / "r.json").read_text())["timing"]
    lift, between, repeat, emit = total["children"]
    assert between["name"] == "verifying, checking, printing" and between["seconds"] > 0
    assert (lift["name"], repeat["name"], emit["name"]) == ("lift", pipeline, "emit ir")
    passes = [child for child in repeat["children"] if child["name"] != between["name"]]
    assert [child["name"] for child in passes] == ["canonicalize", "cse"] * 2
    neutral = next(c for c in passes[0]["children"] if c["name"] == "neutral")
    assert neutral["rewrites"] == 1 and neutral["seconds"] > 0 and neutral["cpu_seconds"] > 0
    assert {"legalise", "write"} <= {child["name"] for child in emit["children"]}
    assert "weights_computed" in repeat
    for line in ("lift", "canonicalize", "neutral", "emit ir"):
        assert line in result.stderr


def test_rules_are_not_timed_unasked(tmp_path: Path) -> None:
    irlab_opt("-", "-p", "canonicalize", "--report", tmp_path / "r.json", "-q", stdin=SMALL)
    children = json.loads((tmp_path / "r.json").read_text())["timing"]["children"]
    (canonicalize,) = [child for child in children if child["name"] == "canonicalize"]
    assert all(rule["seconds"] == 0 for rule in canonicalize["children"])
