"""Where do the builder's bytes and its progress go? Classes that TensorRT calls back, made once for a process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import IO, Any, TypeAlias

from irlab.backends.tensorrt.library import load

Note: TypeAlias = Callable[[str, int, int], None]
"""Told how far a long task is: its name, steps done, steps in all."""


def silent(label: str, done: int, total: int) -> None:
    """The note that says nothing."""


def stream_writer(file: IO[bytes]) -> Any:
    """An IStreamWriter to `file`. `bytes` counts what was written; `error` is the OSError that ended it, because no
    exception may cross TensorRT's own frames."""
    return _writer_class()(file)


def progress_monitor(note: Note) -> Any:
    """An IProgressMonitor that tells of the builder's outermost phase."""
    return _monitor_class()(note)


@cache
def _writer_class() -> Any:
    library = load()

    class Writer(library.IStreamWriter):  # type: ignore[name-defined, misc]
        def __init__(self, file: IO[bytes]) -> None:
            library.IStreamWriter.__init__(self)
            self.file = file
            self.bytes = 0
            self.error: OSError | None = None

        def write(self, data: Any) -> int:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
                return 0
            self.bytes += len(data)
            return len(data)

    return Writer


@cache
def _monitor_class() -> Any:
    library = load()

    class Monitor(library.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self, note: Note) -> None:
            library.IProgressMonitor.__init__(self)
            self.note = note
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[name] = steps

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.steps:
                self.note("building the engine", step + 1, self.steps[name])
            return True

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return Monitor
