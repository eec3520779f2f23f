"""Child processes that a runtime lives in: how one is asked, and ended, whatever state it is in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO, Any

from .errors import InputError

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


class Child:
    """A child process that answers requests: a line of JSON each way. Usable from one thread; a context manager.

    A line with "note" is no answer: it is handed to the `note` of `ask`, and the next line is read. The child must
    keep its stdout for answers. What it prints on stderr is repeated when it dies.
    """

    _TAIL_LINES = 6

    def __init__(self, module: str, what: str) -> None:
        """`module` is run as `python -m`; `what` is what to call the process in messages."""
        self._command = [sys.executable, "-m", module]
        self._what = what
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - outlives this call
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close(kill=error is not None)

    def close(self, kill: bool = False) -> None:
        """End the process: at its next request, or at once with `kill`."""
        process, self._process = self._process, None
        if process is not None:
            if kill:
                process.kill()
            end(process)

    def ask(self, request: Mapping[str, Any], note: Callable[[Any], None] = lambda told: None) -> dict[str, Any]:
        """The answer to `request`. Raises InputError where the process dies over it."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
            )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        for line in stdout:
            answer: dict[str, Any] = json.loads(line)
            if "note" not in answer:
                return answer
            note(answer["note"])
        raise self._death()

    def _death(self) -> InputError:
        assert self._process
        status = self._process.wait()
        self.close()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"died of {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        words = " | ".join(lines[-self._TAIL_LINES :])
        return InputError(f"{self._what} {how}" + (f": {words}" if words else ""))
