"""Does a command still fail in the same way? It runs in a process of its own, on a module written to a file."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import UsageError

PLACE: Final = "{}"
"""Where the command wants the module's file."""

PIPELINE_OPTIONS: Final = ("-p", "--passes")


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status, None if it ran out of time, and what it printed."""

    status: int | None
    output: str

    @property
    def failed(self) -> bool:
        return self.status != 0


@dataclass(frozen=True)
class Command:
    """A command line with a place for the module's file. `pipeline` is what stands behind -p in it, if it stands there
    once; the irlab-opt of this very installation is run."""

    words: tuple[str, ...]
    timeout_seconds: float = 60.0

    @classmethod
    def parse(cls, text: str, timeout_seconds: float) -> Command:
        """The command in `text`, split as a shell does it. Raises UsageError where it has no {}."""
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise UsageError(f"the command {text!r} cannot be split into words: {error}") from None
        if not any(PLACE in word for word in words):
            raise UsageError(f"the command {text!r} has no place for the module", "write {} where its file goes")
        return cls(words, timeout_seconds)

    @property
    def pipeline(self) -> str | None:
        places = _pipelines(self.words)
        return places[0][1] if len(places) == 1 else None

    def with_pipeline(self, pipeline: str) -> Command:
        """The same command with another pipeline behind -p."""
        ((at, _),) = _pipelines(self.words)
        option, equals, _ = self.words[at].partition("=")
        word = f"{option}={pipeline}" if equals and option in PIPELINE_OPTIONS else pipeline
        return Command((*self.words[:at], word, *self.words[at + 1 :]), self.timeout_seconds)

    def run(self, file: Path) -> Outcome:
        """Run it on `file`."""
        words = [word.replace(PLACE, str(file)) for word in self.words]
        if words[0] == "irlab-opt":
            words[:1] = [sys.executable, "-m", "irlab"]
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=self.timeout_seconds,
                text=True,
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            return Outcome(None, "")
        except OSError as error:
            raise UsageError(f"the command {words[0]} cannot be run: {error.strerror}") from None
        return Outcome(done.returncode, done.stdout)

    def __str__(self) -> str:
        return shlex.join(self.words).replace(shlex.quote(PLACE), PLACE)


def _pipelines(words: Sequence[str]) -> list[tuple[int, str]]:
    """Where pipelines stand among `words`, and what they are."""
    found = []
    for at, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in PIPELINE_OPTIONS and equals:
            found.append((at, value))
        elif at and words[at - 1] in PIPELINE_OPTIONS:
            found.append((at, word))
    return found
