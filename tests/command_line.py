"""irlab-opt in a process of its own, for tests, and a small module to give it."""

from __future__ import annotations

import subprocess
import sys

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
    """What `irlab-opt ARGS` did, with IR text for it to read."""
    command = [sys.executable, "-m", "irlab", *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, **kwargs)  # type: ignore[call-overload, no-any-return]


def fails(status: int, *args: object, stdin: str = "") -> str:
    """The one line that a failing run prints."""
    result = irlab_opt(*args, stdin=stdin)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, result.stderr
    return lines[0]
