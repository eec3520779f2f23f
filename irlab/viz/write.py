"""In which format is a graph dumped? A table of writers by the suffix of the file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import InputError
from ..ir import Module
from ..outputs import require_writable, whole_output
from ..passmgr import Progress
from .collapse import fit, inline_constants
from .fold import fold
from .from_graph import picture_of
from .picture import Picture

if TYPE_CHECKING:
    from .timeline import Timeline
    from .weight_statistics import Extent

MAX_NODES: Final = 1_000
"""What graphviz lays out in some seconds. A larger picture is drawn with modules collapsed."""


@dataclass(frozen=True)
class Request:
    """What to dump: `full` draws every layer, where a format folds at all; `figures` are known numbers by name, each by
    module path or node id (the error that a pass made in each layer).

    For the formats that show it, `timeline` is how the module came about, and `weights` how much of each weight to read
    for its statistics: "off", "sample" or "full"."""

    module: Module
    full: bool = False
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    timeline: Timeline | None = None
    weights: Extent = "sample"
    progress: Progress = field(default_factory=Progress)


Writer = Callable[[Request], Mapping[str, bytes]]
"""Makes the contents of a dump, by what replaces the suffix: {".json": ..., ".flops.json": ...}."""


def dump(
    module: Module,
    out: Path | str,
    *,
    full: bool = False,
    figures: Mapping[str, Mapping[str, float]] | None = None,
    timeline: Timeline | None = None,
    weights: Extent = "sample",
    progress: Progress | None = None,
) -> None:
    """Dump `module` into `out`, in the format that its suffix names (see `WRITERS` and `Request`).

    Raises InputError for other suffixes, and where what a format needs is not installed. A format with several files
    writes them beside `out`.
    """
    out = Path(out)
    require_format(out)
    contents = WRITERS[out.suffix](Request(module, full, figures or {}, timeline, weights, progress or Progress()))
    places = {out.with_suffix(suffix): content for suffix, content in contents.items()}
    for place in places:
        require_writable(place, directory=False, force=True)
    for place, content in places.items():
        with whole_output(place, directory=False, force=True) as path:
            path.write_bytes(content)


def require_format(out: Path) -> None:
    """Raise InputError if `out` has no suffix of `WRITERS`, or what that format needs is not installed: before the work
    whose result is to be dumped."""
    if out.suffix not in WRITERS:
        *some, last = WRITERS
        raise InputError(f"{out}: graphs are drawn as {', '.join(some)} or {last}", "name the file accordingly")
    for package, extra in _PACKAGES.get(out.suffix, {}).items():
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{out}: drawing this needs {package}", f"pip install '{extra}'")
    if out.suffix == ".svg":
        from .graphviz import require

        require()


def drawing(request: Request) -> Picture:
    """The picture that drawings show: folded and of a size that can be laid out, unless `full`."""
    picture = inline_constants(picture_of(request.module))
    return picture if request.full else fit(fold(picture), MAX_NODES)


def _dot(request: Request) -> dict[str, bytes]:
    from .dot import draw

    text: str = draw(drawing(request)).to_string()
    return {".dot": text.encode()}


def _svg(request: Request) -> dict[str, bytes]:
    from .graphviz import MAX_FULL_NODES, lay_out

    picture = drawing(request)
    if len(picture.nodes) > MAX_FULL_NODES:
        raise InputError(
            f"{len(picture.nodes):,} nodes are more than graphviz can lay out",
            "leave out --dump-full, run fuse first, or write .html or .json",
        )
    from .dot import draw

    return {".svg": lay_out(draw(picture).to_string())}


def _json(request: Request) -> dict[str, bytes]:
    import json

    from ..cost import DEFAULT_SIZES
    from .model_explorer import collection, node_data, own_figures

    # Model Explorer folds by itself, and is made for graphs of any size.
    picture = picture_of(request.module)
    figures = {**own_figures(picture, DEFAULT_SIZES), **request.figures}
    found = {f".{name}.json": data for name, data in node_data(picture, figures).items()}
    return {suffix: json.dumps(data).encode() for suffix, data in {".json": collection(picture), **found}.items()}


def _onnx(request: Request) -> dict[str, bytes]:
    from .onnx_graph import onnx_model

    return {".onnx": onnx_model(request.module).SerializeToString()}


def _html(request: Request) -> dict[str, bytes]:
    from .html import page
    from .timeline import Timeline

    timeline = request.timeline or Timeline()
    timeline.begin(request.module)
    return {".html": page(timeline, request.weights, request.progress).encode()}


WRITERS: Final[dict[str, Writer]] = {".dot": _dot, ".svg": _svg, ".json": _json, ".onnx": _onnx, ".html": _html}
"""By suffix, what makes the content of a dump."""

_PACKAGES: Final[dict[str, dict[str, str]]] = {
    ".dot": {"pydot": "irlab[viz]"},
    ".svg": {"pydot": "irlab[viz]"},
    ".html": {"pygraphviz": "irlab[viz]"},
}
"""What a format is written with, and what brings it."""
