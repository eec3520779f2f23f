"""Strategies one after another, until none makes the case smaller; the best so far is kept all the time."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ..errors import IrlabError, UsageError
from ..ir import Module
from ..pipeline import Step, parse_pipeline
from ..text import print_module
from ..verify import verify
from .strategies import PIPELINE_STRATEGIES, STRATEGIES
from .trial import Command, Outcome

MAX_ROUNDS: Final = 6


@dataclass(frozen=True)
class Case:
    """A module, and the command that fails on it."""

    module: Module
    command: Command

    @property
    def op_count(self) -> int:
        """The ops of the module that text shows."""
        from .pieces import movable

        return len(movable(self.module.graph))

    def text(self, directory: Path) -> str:
        """The module as a file in `directory`."""
        return print_module(self.module, directory.resolve())

    def result(self, directory: Path) -> str:
        """The same, with the command that fails on it. Not what is tried: a command may search the file for a word."""
        return f"// fails: {self.command}\n{self.text(directory)}"


@dataclass
class _Search:
    """Asks whether smaller cases fail as the first one did. `best` is the smallest that does."""

    best: Case
    expected: Outcome
    match: str
    improved: Callable[[Case, int], None]
    tries: int = 0
    best_key: str = ""
    known: dict[str, bool] = field(default_factory=dict)

    def fails(self, case: Case) -> bool:
        try:
            verify(case.module)
        except IrlabError:
            return False
        with tempfile.TemporaryDirectory(prefix="irlab-reduce-") as directory:
            file = Path(directory) / "case.ir"
            text = case.text(file.parent)
            key = hashlib.sha256(f"{case.command}\n{text}".encode()).hexdigest()
            if key not in self.known:
                file.write_text(text, encoding="utf-8")
                self.tries += 1
                self.known[key] = self.alike(case.command.run(file))
        if self.known[key] and key != self.best_key:
            # Strategies go on from whatever fails, so this is the smallest so far.
            self.best, self.best_key = case, key
            self.improved(case, self.tries)
        return self.known[key]

    def alike(self, outcome: Outcome) -> bool:
        return outcome.status == self.expected.status and self.match in outcome.output


def reduce_case(case: Case, *, match: str = "", improved: Callable[[Case, int], None]) -> Case:
    """The smallest case that was found on which the command fails as on `case`: with the same exit status (or again
    not in time), and with `match` in what it prints.

    `improved(case, tries)` is told of each smaller one, so that a search that is interrupted loses nothing.
    Raises UsageError if the command does not fail on `case`.
    """
    search = _Search(case, Outcome(0, ""), match, improved)
    with tempfile.TemporaryDirectory(prefix="irlab-reduce-") as directory:
        file = Path(directory) / "case.ir"
        file.write_text(case.text(file.parent), encoding="utf-8")
        search.expected = case.command.run(file)
    if not search.expected.failed:
        raise UsageError(f"the command does not fail on INPUT: {case.command}", "--reduce needs a command that fails")
    if match not in search.expected.output:
        last = search.expected.output.strip().rsplit("\n", 1)[-1]
        raise UsageError(f"the command fails on INPUT, but without printing {match!r}", f"it ends with: {last}")
    _reduce_pipeline(search)
    for _ in range(MAX_ROUNDS):
        before = search.best
        for strategy in STRATEGIES:
            strategy(search.best.module, lambda module: search.fails(replace(search.best, module=module)))
        if search.best.op_count == before.op_count:
            break
    return search.best


def _reduce_pipeline(search: _Search) -> None:
    command = search.best.command
    if not command.pipeline:
        return
    steps: Sequence[Step] = parse_pipeline(command.pipeline)

    def with_steps(some: Sequence[Step]) -> Case:
        return replace(search.best, command=command.with_pipeline(",".join(map(str, some))))

    for strategy in PIPELINE_STRATEGIES:
        steps = strategy(steps, lambda some: search.fails(with_steps(some)))
