"""Child processes that a runtime lives in: how one is ended, whatever state it is in."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import Any

GRACE_SECONDS = 5.0


def end(child: subprocess.Popen[Any]) -> None:
    """Close the pipes of `child` and wait for it; one that does not go is killed."""
    assert child.stdin and child.stdout
    with suppress(BrokenPipeError):  # a request that a dead child never read
        child.stdin.close()
    try:
        child.wait(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    child.stdout.close()
