"""Pictures of modules: `dump(module, "graph.dot")`, or `.svg` where graphviz is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import InputError
from ..ir import Module
from ..outputs import whole_output

FORMATS = (".dot", ".svg")


def dump(module: Module, out: Path, *, full: bool = False) -> None:
    """Draw `module` into `out`; identical layers are drawn once unless `full`. Raises InputError for other formats."""
    if out.suffix not in FORMATS:
        raise InputError(f"{out}: graphs are drawn as {' or '.join(FORMATS)}", "name the file accordingly")
    if out.suffix == ".svg" and not shutil.which("dot"):
        raise InputError("drawing an .svg needs graphviz's `dot` program", "install graphviz, or write a .dot file")
    from .dot import draw

    picture = draw(module, full=full)
    with whole_output(out, directory=False, force=True) as path:
        if out.suffix == ".dot":
            path.write_text(picture.to_string(), encoding="utf-8")
        else:
            path.write_bytes(picture.create_svg())
