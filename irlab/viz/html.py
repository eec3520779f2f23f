"""How does a timeline become a page? One file with its data, style and script inside, which loads nothing.

The page's own sources are in page/. All text from the IR is data: it never becomes markup or script, and the page's
content policy admits no script but its own and no network.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Any, Final

from .page_data import page_data
from .weight_statistics import Extent, WeightStatistics, measure

if TYPE_CHECKING:
    from ..passmgr import Progress
    from .timeline import Timeline

SCRIPTS: Final = (
    "dom", "data", "changes", "store", "place", "graph", "timeline", "tree", "detail", "diff", "heat", "search", "main",
)  # fmt: skip
"""The parts of the script, in the order in which they build on each other. They share one scope."""


def page(timeline: Timeline, extent: Extent, progress: Progress) -> str:
    """The page for `timeline`, as HTML. `extent` says how much of the weights to read for their statistics."""
    return render(timeline.name, page_data(timeline, statistics(timeline, extent, progress)))


def statistics(timeline: Timeline, extent: Extent, progress: Progress) -> dict[int, WeightStatistics]:
    """The statistics of every weight of the timeline, by index, with the error against the first weight of its name."""
    first: dict[str, int] = {}
    found: dict[int, WeightStatistics] = {}
    for index, symbol in progress.track(list(enumerate(timeline.weights)), "weight statistics"):
        loaded = timeline.weights[first.setdefault(symbol.name, index)]
        comparable = loaded is not symbol and loaded.type.shape == symbol.type.shape
        found[index] = measure(symbol, extent, loaded if comparable else None)
    return found


def render(title: str, data: dict[str, Any]) -> str:
    """The page that shows `data`."""
    files = resources.files(__package__).joinpath("page")

    def source(name: str) -> str:
        return files.joinpath(name).read_text(encoding="utf-8")

    script = '"use strict";\n(() => {\n' + "\n".join(source(f"{name}.js") for name in SCRIPTS) + "})();\n"
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    # JSON inside a script element ends at "</script", whatever stands around it.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {"title": html.escape(f"{title} · irlab"), "style": source("page.css"), "data": text, "script": script}
    return Template(source("page.html")).substitute(parts, script_hash=f"sha256-{digest}")
