"""What does TensorRT say? Its messages, kept so that an error can repeat the one that matters.

TensorRT holds locks while it calls a logger. If Python's cyclic collector runs just then and finds a builder or a
network, its destructor waits for the same lock for ever. So there is one logger for the process, which TensorRT wants
anyway, and nothing that holds a TensorRT object may be part of a cycle.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from irlab.backends.tensorrt.library import load


class BuilderLog:
    """Errors and warnings since it was made: of one network at a time."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.logger = _logger()
        self.logger.listener = self

    @property
    def last(self) -> str:
        """The last error, or empty."""
        return self.errors[-1] if self.errors else ""


@cache
def _logger() -> Any:
    """The ILogger of this process; it tells its `listener`."""
    library = load()
    severity = library.ILogger.Severity

    class Logger(library.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.listener: BuilderLog | None = None

        def log(self, level: Any, message: str) -> None:
            if self.listener is None:
                return
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.listener.errors.append(message.strip())
            elif level == severity.WARNING:
                self.listener.warnings.append(message.strip())

    return Logger()
