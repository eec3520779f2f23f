"""Which lines of IR text did a pass change? The weight table and the ops, equal layers once, with a little around."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Final, Literal, NamedTuple

CONTEXT: Final = 3
"""Lines shown around a change."""


class DiffLine(NamedTuple):
    """A line of a diff: it stayed (" "), went ("-") or came ("+"); `item` says which. "…" stands for `item` lines that
    are left out."""

    tag: Literal[" ", "-", "+", "…"]
    item: int


def diff(before: Sequence[int], after: Sequence[int], texts: Sequence[str]) -> list[DiffLine]:
    """The difference of two sequences of items, which are the same where their `texts` are."""
    old, new = [texts[item] for item in before], [texts[item] for item in after]
    lines: list[DiffLine] = []
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            lines += [DiffLine(" ", item) for item in after[j1:j2]]
        else:
            went = [DiffLine("-", item) for item in before[i1:i2]]
            came = [DiffLine("+", item) for item in after[j1:j2]]
            # As many as before: most likely each line became the one in its place.
            paired = len(went) == len(came)
            lines += [line for pair in zip(went, came) for line in pair] if paired else went + came
    return _near_changes(lines)


def _near_changes(lines: Sequence[DiffLine]) -> list[DiffLine]:
    """`lines` without those far from any change."""
    near: set[int] = set()
    for at, line in enumerate(lines):
        if line.tag != " ":
            near.update(range(at - CONTEXT, at + CONTEXT + 1))
    kept: list[DiffLine] = []
    left_out = 0
    for at, line in enumerate(lines):
        if at in near:
            if left_out:
                kept.append(DiffLine("…", left_out))
            kept.append(line)
            left_out = 0
        else:
            left_out += 1
    return [*kept, DiffLine("…", left_out)] if kept and left_out else kept
