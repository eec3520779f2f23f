"""What did a run do, at a glance? The report as one HTML page: passes, losses, files, speeds, and the report itself.

The page is made of the report that `--report FILE.json` holds, and carries it, so that a program can read it too:
the element `report` has it as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

Report = Mapping[str, Any]

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border-bottom: 1px solid #8884; padding: .25em .75em; text-align: right; vertical-align: top; }
td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; }
.warning { border-left: 4px solid #c60; padding-left: .75em; } svg { overflow: visible; }
polyline { fill: none; stroke: #36c; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } polyline { stroke: #7af; } }
"""

_CURVE: Final = (480, 120)
"""Width and height of a curve in pixels."""


def page(report: Report) -> str:
    """`report` as a page."""
    title = f"irlab: {report['input']}"
    parts = [
        f"<h1>{escape(title)}</h1><p><code>{escape(str(report['pipeline'] or 'no passes'))}</code></p>",
        "<h2>Passes</h2>",
        _passes(report),
        *_curves(report["passes"]),
        *_warnings(report),
        *_files(report),
    ]
    # "</script>" in a name must not end the element.
    raw = json.dumps(report).replace("<", "\\u003c")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f'<body>{"".join(parts)}<script type="application/json" id="report">{raw}</script></body></html>\n'
    )


def _passes(report: Report) -> str:
    """A row for each pass. Where neighbours share a sweep, the quality stands behind the last of them."""
    before = report["quality"].get("before", {})
    head = ("pass", "seconds", "bytes before", "bytes after", "perplexity", "KL", "top-1")
    rows = [("the model", "", "", "", *_quality(before))] if before else []
    for record in report["passes"]:
        text = record["text"] or record["name"]
        sizes = [f"{record[key]:,}" for key in ("bytes_before", "bytes_after")]
        rows.append((text, f"{record['seconds']:.1f}", *sizes, *_quality(record)))
    return _table(head, rows)


def _quality(found: Mapping[str, Any]) -> tuple[str, str, str]:
    return (
        _number(found.get("perplexity"), ".4g"),
        _number(found.get("kl"), ".4g"),
        _number(found.get("top1"), ".1%"),
    )


def _curves(records: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """What was measured step by step."""
    width, height = _CURVE
    for record in records:
        for name, values in record["series"].items():
            if len(values) < 2:
                continue
            low, high = min(0.0, *values), max(*values, 1e-12)
            points = (
                f"{width * i / (len(values) - 1):.1f},{height * (high - value) / (high - low):.1f}"
                for i, value in enumerate(values)
            )
            held = ", ".join(f"{key} {value:.4g}" for key, value in record.items() if key.startswith("held_out"))
            yield (
                f"<h3>{escape(name)} of {escape(record['name'])}, step by step</h3>"
                f'<svg width="{width}" height="{height}" role="img"><polyline points="{" ".join(points)}"/></svg>'
                f"<p>{len(values)} steps, from {values[0]:.4g} to {values[-1]:.4g}. {escape(held)}</p>"
            )


def _files(report: Report) -> Iterable[str]:
    """What was written, where it runs, and how fast."""
    if not report["bytes"]:
        return
    head = ("file", "bytes", "runtime", "largest logit difference", "KL", "greedy tokens", "perplexity")
    rows = []
    for out, size in report["bytes"].items():
        parity = report["parity"][out]
        checked = not parity["skipped"]
        measured: Mapping[str, Any] = next(
            (q for name, q in report["quality"].items() if name.startswith(f"{out} in ")), {}
        )
        rows.append(
            (
                out,
                f"{size:,}",
                parity["runtime"] or parity["skipped"],
                _number(parity["max_abs_logit_diff"], ".2g"),
                _number(parity["kl"], ".2g"),
                ("equal" if parity["greedy_equal"] else "differ") if checked else "",
                _number(measured.get("perplexity"), ".4g"),
            )
        )
    yield "<h2>Files</h2>" + _table(head, rows)
    if report["speed"]:
        yield "<h2>Tokens per second</h2>" + _speeds(report["speed"])


def _speeds(speeds: Mapping[str, Mapping[str, Any]]) -> str:
    head = ("file", "runtime", "decoding", "before", "gain", "prompts", "before", "gain")
    rows = []
    for out, found in speeds.items():
        row = [out, found["runtime"] or found["skipped"]]
        for what in ("decode", "prompt"):
            for key, form in (("tokens_per_second", ",.1f"), ("tokens_per_second_before", ",.1f"), ("gain", ".2f")):
                row.append(_number((found[key] or {}).get(what), form))
        rows.append(row)
    without = sorted({step for found in speeds.values() for step in found["without"]})
    busy = sorted({found["busy"] for found in speeds.values() if found["busy"]})
    said = [f"Before: without {', '.join(without)}."] * bool(without) + [f"Measured {text}." for text in busy]
    return _table(head, rows) + f"<p>{escape(' '.join(said))}</p>"


def _warnings(report: Report) -> Iterable[str]:
    """What was not gained, and what files cannot say exactly."""
    for out, found in report["speed"].items():
        if found["warning"]:
            yield f'<p class="warning">{escape(out)}: {escape(found["warning"])}</p>'
    for out, notes in report["notes"].items():
        for text in notes:
            yield f'<p class="warning">{escape(out)}: {escape(text)}</p>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
