"""How do several outputs read their weights? In turns, tensor by tensor of the source, so that each is read once.

A writer says what it wants as a `Reading` and is resumed when it has it (`irlab.target.Backend.write`). Weights that
are made from one tensor of a file follow each other, whichever output they are for, and the tensor is kept from the
first to the last of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from ..timing import cpu_seconds
from .leaves import FileTensor
from .recipe import Recipe, WeightSymbol
from .shelf import SHELF
from .stream import Chunk, spans, worked_ahead


@dataclass(eq=False)
class Reading:
    """What one writer wants: every chunk of rows of `symbols`, in any order of the symbols.

    `work(symbol, start, stop)` makes something of rows, in a thread; `take` is given it, one chunk after another. An
    exception of either ends this reading alone, and is its `error`.
    """

    symbols: Sequence[WeightSymbol]
    work: Callable[[WeightSymbol, int, int], Any]
    take: Callable[[Chunk[Any]], None]
    error: Exception | None = field(default=None, init=False)
    seconds: float = field(default=0.0, init=False)
    cpu_seconds: float = field(default=0.0, init=False)
    """Its part of the time that was spent together."""


Readings: TypeAlias = Generator[Reading, None, None]
"""A writer by steps: it is resumed after each reading, or has its error raised in it."""


@dataclass(frozen=True, eq=False)
class _Turn:
    """One weight of one reading, with the tensors of files that it is made from."""

    reading: Reading
    symbol: WeightSymbol
    tensors: frozenset[Recipe]


def read_together(readings: Sequence[Reading], jobs: int = 1, weight_done: Callable[[], None] = lambda: None) -> None:
    """Serve all `readings`, each tensor of a file being read once for all of them; `weight_done` is called after each
    of their weights. Memory: `jobs` + 2 chunks, and the tensors of files that the weights in work are made from,
    mapped. Errors are left in the readings."""
    turns = [_Turn(r, symbol, frozenset(_tensors(symbol.recipe))) for r in readings for symbol in r.symbols]
    if len(readings) > 1:
        turns = _by_source(turns)
    waiting = dict.fromkeys(turns if len(readings) > 1 else ())
    busy: Counter[Reading] = Counter()
    wall, cpu = time.perf_counter(), cpu_seconds()
    for turn in waiting:
        SHELF.expect(turn.tensors)
    try:
        for (turn, start, stop, last), (value, error, seconds) in worked_ahead(_tasks(turns), jobs):
            reading = turn.reading
            reading.error = reading.error or error
            begun = time.perf_counter()
            if reading.error is None:
                try:
                    reading.take(Chunk(turn.symbol, start, stop, last, value))
                except Exception as problem:
                    reading.error = problem
            busy[reading] += seconds + time.perf_counter() - begun
            if last:
                weight_done()
                if turn in waiting:
                    del waiting[turn]
                    SHELF.release(turn.tensors)
    finally:
        for turn in waiting:
            SHELF.release(turn.tensors)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    for reading, seconds in busy.items():
        share = seconds / sum(busy.values())
        reading.seconds, reading.cpu_seconds = wall * share, cpu * share


def read_alone(reading: Reading, jobs: int = 1) -> None:
    """Serve one reading. Raises its error."""
    read_together([reading], jobs)
    if reading.error is not None:
        raise reading.error


def _tasks(turns: Sequence[_Turn]) -> Iterator[tuple[tuple[_Turn, int, int, bool], Callable[[], Any]]]:
    for turn in turns:
        for start, stop, last in spans(turn.symbol):
            yield (turn, start, stop, last), partial(_attempt, turn, start, stop)


def _attempt(turn: _Turn, start: int, stop: int) -> tuple[Any, Exception | None, float]:
    """What the reading makes of some rows, or why it cannot, and how long that took."""
    begun = time.perf_counter()
    value, error = None, turn.reading.error
    if error is None:
        try:
            value = turn.reading.work(turn.symbol, start, stop)
        except Exception as problem:
            error = problem
    return value, error, time.perf_counter() - begun


def _by_source(turns: Sequence[_Turn]) -> list[_Turn]:
    """`turns` in the order in which the first reading comes to tensors, with all that is made from one together.

    Of several tensors that a weight is made from, the one with the fewest readers counts: a rotation, say, has a part
    in every weight and tells nothing of where they lie."""
    readers = Counter(tensor for turn in turns for tensor in turn.tensors)
    place: dict[Recipe | None, int] = {}

    def at(turn: _Turn) -> int:
        rarest = min(turn.tensors, key=lambda tensor: (readers[tensor], str(tensor)), default=None)
        return place.setdefault(rarest, len(place))

    return sorted(turns, key=at)


def _tensors(recipe: Recipe) -> Iterator[Recipe]:
    """The tensors of files that `recipe` is made from."""
    seen: set[int] = set()
    waiting = [recipe]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, FileTensor):
            yield one
        waiting += one.inputs
