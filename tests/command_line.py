"""What irlab-opt does and says, for tests, and a small module to give it."""

from __future__ import annotations

import subprocess
import sys

from irlab.testing import filecheck

SMALL = """irlab 1
module "small"

@w : f32[4, 8] = random()

graph(%x: f32[batch, 8]) {
  %0 = prim.mul(%x, f32(1.0))  : f32[batch, 8]
  %1 = nn.linear(%0, @w)       : f32[batch, 4]
  return y=%1
}
"""


def irlab_opt(*args: object, stdin: str = "", **kwargs: object) -> subprocess.CompletedProcess[str]:
    """What `irlab-opt ARGS` did, with IR text for it to read.

    It runs in this process, which has imported torch already; in one of its own where it needs another folder or
    environment (`kwargs`), or loads a file, whose passes would stay for the tests that follow.
    """
    words = [str(arg) for arg in args]
    if kwargs or "--load" in words:
        command = [sys.executable, "-m", "irlab", *words]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, **kwargs)  # type: ignore[call-overload, no-any-return]
    return subprocess.CompletedProcess(words, *filecheck.irlab_opt(words, stdin))


def fails(status: int, *args: object, stdin: str = "") -> str:
    """The one line that a failing run prints."""
    result = irlab_opt(*args, stdin=stdin)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, result.stderr
    return lines[0]
