"""Where did the time go? A tree of spans: lifting, passes with their rules, emitting with the parity run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Span:
    """A stretch of work. CPU seconds are of all threads, and of child processes that ended meanwhile.

    `rewrites`: changes made, `ops`: how many before and after, `weights_computed`: weights whose numbers were made
    here; each where it applies.
    """

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rewrites: int | None = None
    weights_computed: int | None = None
    ops: tuple[int, int] | None = None
    children: list[Span] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For `--report`: what applies."""
        known = {key: value for key, value in vars(self).items() if value is not None and key != "children"}
        return known | ({"children": [child.as_dict() for child in self.children]} if self.children else {})


class Clock:
    """Measures spans, those begun within another as its children."""

    def __init__(self) -> None:
        self.root = Span("total")
        self._open = [self.root]
        self._begun = (time.perf_counter(), cpu_seconds())

    @contextmanager
    def span(self, name: str) -> Iterator[Span]:
        """Measures the block, also where it fails."""
        span = Span(name)
        self.add(span)
        with self.resumed(span):
            yield span

    def add(self, span: Span) -> None:
        """Place a span that will be resumed."""
        self._open[-1].children.append(span)

    @contextmanager
    def resumed(self, span: Span) -> Iterator[None]:
        """Adds the block to `span`: what goes on in turns is one span."""
        self._open.append(span)
        wall, cpu = time.perf_counter(), cpu_seconds()
        try:
            yield
        finally:
            span.seconds += time.perf_counter() - wall
            span.cpu_seconds += cpu_seconds() - cpu
            self._open.pop()

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Adds the block to the one span `name` on this level: work between other spans, such as verifying."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        try:
            yield
        finally:
            siblings = self._open[-1].children
            span = next((child for child in siblings if child.name == name), None)
            if span is None:
                span = Span(name)
                siblings.append(span)
            span.seconds += time.perf_counter() - wall
            span.cpu_seconds += cpu_seconds() - cpu

    def total(self) -> Span:
        """All spans, and the time since the clock was made."""
        wall, cpu = self._begun
        self.root.seconds, self.root.cpu_seconds = time.perf_counter() - wall, cpu_seconds() - cpu
        return self.root


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def timing_table(total: Span) -> str:
    """The tree as a table; rules below their pass, dearest first, idle ones in one line."""
    import io

    from rich.console import Console
    from rich.table import Table

    table = Table(title="timing", title_justify="left")
    table.add_column("what", overflow="fold")
    for column in ("wall s", "CPU s", "share", "rewrites", "ops", "weights computed"):
        table.add_column(column, justify="right", no_wrap=True)
    for depth, span in _walk(total, 0):
        ops = f"{span.ops[0]} -> {span.ops[1]}" if span.ops else ""
        counts = ["" if n is None else f"{n:,}" for n in (span.rewrites, span.weights_computed)]
        times = ["", "", ""]  # what a pass counts as a rule's work without timing it
        if span.seconds and total.seconds:
            times = [f"{span.seconds:.3f}", f"{span.cpu_seconds:.3f}", f"{span.seconds / total.seconds:.0%}"]
        table.add_row("  " * depth + span.name, *times, counts[0], ops, counts[1])
    out = io.StringIO()
    Console(file=out, width=120).print(table, markup=False)
    return out.getvalue().rstrip()


def _walk(span: Span, depth: int) -> Iterator[tuple[int, Span]]:
    yield depth, span
    idle = [child for child in span.children if child.ops is None and child.rewrites == 0]
    for child in span.children:
        if child not in idle:
            yield from _walk(child, depth + 1)
    if len(idle) == 1:
        yield depth + 1, idle[0]
    elif idle:
        times = sum(child.seconds for child in idle), sum(child.cpu_seconds for child in idle)
        yield depth + 1, Span(f"{len(idle)} rules that did not apply", *times, rewrites=0)
