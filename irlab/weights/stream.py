"""How does a back end read many weights? In order, a chunk of rows at a time, while threads work ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

import ml_dtypes
import numpy as np

from ..encodings import Codes
from ..errors import InputError
from .leaves import FileTensor
from .recipe import AnyArray, WeightSymbol

K = TypeVar("K")
T = TypeVar("T")

CHUNK_BYTES: Final = 16 << 20
"""What is read at a time, as f32."""

_INFINITY_BITS = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}
"""Infinity among 16-bit floats; NaNs lie above it."""


@dataclass(frozen=True)
class Chunk(Generic[T]):
    """What was made of rows [start:stop] of a weight. `last` says that they are the last ones of it."""

    symbol: WeightSymbol
    start: int
    stop: int
    last: bool
    value: T


def check_finite(name: str, rows: AnyArray, start: int = 0) -> None:
    """Raise InputError, naming the weight and the first row at fault, if `rows` (which begin at `start`) hold NaN or
    an infinity."""
    infinity = _INFINITY_BITS.get(rows.dtype)
    if infinity is not None:
        # Bits order as numbers do: positive ones as signed integers, negative ones as unsigned.
        if rows.view(np.int16).max(initial=0) < infinity and rows.view(np.uint16).max(initial=0) < 0x8000 | infinity:
            return
    elif rows.dtype.kind in "iub":
        return
    elif rows.dtype.kind == "f":
        with np.errstate(all="ignore"):
            # One pass without a temporary: a finite sum proves that every term is finite.
            if np.isfinite(rows.sum()):
                return
    good = np.isfinite(rows)
    if not good.all():
        at = np.argwhere(~good)[0]
        value = "NaN" if np.isnan(rows[tuple(at)]) else "an infinity"
        where = [int(i) for i in at]
        where[0] += start
        raise InputError(
            f"weight '{name}' holds {value} at {where}", "the checkpoint is damaged, or was saved in overflow"
        )


def finite_rows(symbol: WeightSymbol, start: int, stop: int) -> AnyArray:
    """Rows [start:stop] of a weight, all finite; InputError names the weight otherwise."""
    try:
        rows = symbol.recipe.rows(start, stop)
    except InputError as error:
        _blame_files(symbol)
        raise _named(error, symbol) from None
    check_finite(symbol.name, rows, start)
    return rows


def finite_codes(symbol: WeightSymbol, start: int, stop: int) -> Codes:
    """The codes of rows [start:stop] of an encoded weight; InputError names the weight if they cannot be made."""
    try:
        return symbol.recipe.codes(start, stop)
    except InputError as error:
        _blame_files(symbol)
        raise _named(error, symbol) from None


def _blame_files(symbol: WeightSymbol) -> None:
    """Raise InputError if a file that `symbol` is made from holds a number that is not finite: by the name and the
    place that it has there, whatever became of it since."""
    recipes = [symbol.recipe]
    while recipes:
        recipe = recipes.pop()
        recipes += recipe.inputs
        if isinstance(recipe, FileTensor) and recipe.type.dtype.is_float:
            for start, stop in recipe.chunks():
                check_finite(recipe.name, recipe.rows(start, stop), start)


def _named(error: InputError, symbol: WeightSymbol) -> InputError:
    return InputError(f"weight '{symbol.name}': {error.message}", error.hint)


def stream(
    symbols: Iterable[WeightSymbol],
    work: Callable[[WeightSymbol, int, int], T],
    *,
    jobs: int = 1,
    max_bytes: int = CHUNK_BYTES,
) -> Iterator[Chunk[T]]:
    """Yield work(symbol, start, stop) for chunks of rows that cover `symbols`, in order.

    `work` runs in `jobs` threads (`finite_rows` is one: it reads); at most jobs + 1 results wait, so memory is bounded
    by the size of (jobs + 2) results, each made of at most `max_bytes` of rows as f32 (more where one row, or a tensor
    that is not row-local, is larger). The first exception stops everything.
    """
    tasks = (
        ((symbol, *span), partial(work, symbol, *span[:2])) for symbol in symbols for span in spans(symbol, max_bytes)
    )
    for (symbol, start, stop, last), value in worked_ahead(tasks, jobs):
        yield Chunk(symbol, start, stop, last, value)


def spans(symbol: WeightSymbol, max_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int, bool]]:
    """The chunks of rows that cover a weight: (start, stop, whether it is the last)."""
    for start, stop in symbol.recipe.chunks(max_bytes):
        yield start, stop, stop == symbol.recipe.row_count


def worked_ahead(tasks: Iterable[tuple[K, Callable[[], T]]], jobs: int) -> Iterator[tuple[K, T]]:
    """Yield (key, work()) for each of `tasks`, in order, while `jobs` threads work at most jobs + 1 ahead."""
    if jobs <= 1:
        for key, work in tasks:
            yield key, work()
        return
    waiting: deque[tuple[K, Future[T]]] = deque()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for key, work in tasks:
                waiting.append((key, pool.submit(work)))
                if len(waiting) > jobs + 1:
                    key, future = waiting.popleft()
                    yield key, future.result()
            while waiting:
                key, future = waiting.popleft()
                yield key, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
