"""In which format is a graph dumped? A table of writers by the suffix of the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import InputError
from ..ir import Module
from ..outputs import whole_output
from .collapse import fit, inline_constants
from .fold import fold
from .from_graph import picture_of
from .picture import Picture

MAX_NODES: Final = 1_000
"""What graphviz lays out in some seconds. A larger picture is drawn with modules collapsed."""


@dataclass(frozen=True)
class Request:
    """What to dump: `full` draws every layer, where a format folds at all."""

    module: Module
    full: bool = False


def dump(module: Module, out: Path | str, *, full: bool = False) -> None:
    """Dump `module` into `out`, in the format that its suffix names; equal layers are drawn once unless `full`.

    Raises InputError for other suffixes, and where what a format needs is not installed.
    """
    out = Path(out)
    writer = WRITERS.get(out.suffix)
    if writer is None:
        *some, last = WRITERS
        raise InputError(f"{out}: graphs are drawn as {', '.join(some)} or {last}", "name the file accordingly")
    content = writer(Request(module, full))
    with whole_output(out, directory=False, force=True) as path:
        path.write_bytes(content)


def drawing(request: Request) -> Picture:
    """The picture that drawings show: folded and of a size that can be laid out, unless `full`."""
    picture = inline_constants(picture_of(request.module))
    return picture if request.full else fit(fold(picture), MAX_NODES)


def _dot(request: Request) -> bytes:
    from .dot import draw

    text: str = draw(drawing(request)).to_string()
    return text.encode()


def _svg(request: Request) -> bytes:
    from .graphviz import lay_out

    return lay_out(_dot(request).decode())


WRITERS: Final[dict[str, Callable[[Request], bytes]]] = {".dot": _dot, ".svg": _svg}
"""By suffix, what makes the content of a dump."""
