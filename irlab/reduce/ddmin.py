"""Which of many things does a failure need? Zeller and Hildebrandt's ddmin (Simplifying and Isolating
Failure-Inducing Input, IEEE TSE 2002)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def ddmin(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """A subset of `items`, in order, that `fails` and from which no single one can be left out.

    `fails` is asked about subsets, and is taken to hold for all of `items`. Tries halves, then what is left without
    them, then smaller parts: n items of which k matter cost about k log n questions.
    """
    kept = list(items)
    if not kept or fails([]):
        return []
    parts = 2
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        chunks = [kept[start : start + size] for start in range(0, len(kept), size)]
        smaller = next((chunk for chunk in chunks if len(chunks) > 1 and fails(chunk)), None)
        if smaller is not None:
            kept, parts = smaller, 2
            continue
        for i in range(len(chunks)) if len(chunks) > 2 else ():  # with two, the rest of one is the other
            rest = [item for j, chunk in enumerate(chunks) if j != i for item in chunk]
            if fails(rest):
                kept, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                return kept
            parts = min(2 * parts, len(kept))
    return kept
