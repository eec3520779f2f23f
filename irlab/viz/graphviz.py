"""How is a Graphviz picture laid out without waiting for ever? `dot` in a process of its own, with limits."""

from __future__ import annotations

import shutil
import subprocess
from typing import Final

from ..errors import InputError

MAX_SECONDS: Final = 60.0
MAX_FULL_NODES: Final = 5_000
"""More than this is refused at once: it would only run into the time limit."""
PROGRAM: Final = "dot"


def require() -> str:
    """The path of `dot`; raises InputError where graphviz is not installed."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise InputError("laying out a graph needs graphviz's `dot` program", "install graphviz, or write a .dot file")
    return program


def lay_out(text: str, format: str = "svg", max_seconds: float = MAX_SECONDS) -> bytes:
    """The drawing of the dot file `text`. Raises InputError where graphviz is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            [require(), f"-T{format}"], input=text.encode(), capture_output=True, timeout=max_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"graphviz did not lay out the graph in {max_seconds:.0f} seconds",
            "run fuse first, leave out --dump-full, or write .html or .json",
        ) from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise InputError(f"graphviz failed: {reason[0]}")
    return done.stdout
