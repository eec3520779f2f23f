"""Progress bars on a terminal, by rich."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

from .passmgr import Progress


class RichProgress(Progress):
    """Bars on stderr that vanish when they are done."""

    def track(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
        from rich.console import Console
        from rich.progress import track

        size = total if total is not None else len(items) if isinstance(items, Sized) else None
        return track(items, label, total=size, console=Console(stderr=True), transient=True)
