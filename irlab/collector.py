"""When does Python's cyclic collector run? Not while a graph grows, where it would walk everything over and over."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused(enabled: bool = True) -> Iterator[None]:
    """Stops the collector for the block, or for a function where this decorates one; not `enabled`: does nothing."""
    stopped = enabled and gc.isenabled()
    if stopped:
        gc.disable()
    try:
        yield
    finally:
        if stopped:
            gc.enable()


def skip_at_exit() -> None:
    """Let the process end without a last collection, which visits every object of torch and transformers: a second."""
    atexit.register(gc.freeze)
