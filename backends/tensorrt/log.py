"""What does TensorRT say? Its messages, kept so that an error can repeat the one that matters."""

from __future__ import annotations

from typing import Any

from irlab.backends.tensorrt.library import load


class BuilderLog:
    """Collects errors and warnings. `logger` is the ILogger to hand to TensorRT; it must outlive what gets it."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.logger = _logger(self)

    @property
    def last(self) -> str:
        """The last error, or empty."""
        return self.errors[-1] if self.errors else ""


def _logger(log: BuilderLog) -> Any:
    library = load()
    severity = library.ILogger.Severity

    class Logger(library.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                log.errors.append(message.strip())
            elif level == severity.WARNING:
                log.warnings.append(message.strip())

    return Logger()
