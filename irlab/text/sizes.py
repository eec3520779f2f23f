"""Reading sizes: integer expressions over names.

Text may be hostile: digits, terms, degrees and nesting are bounded here, before anything is computed from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from ..dims import Dim, Size, floordiv, maximum, minimum, mod, symbol
from .cursor import Cursor

MAX_DEPTH: Final = 64
MAX_DIGITS: Final = 40
MAX_TERMS: Final = 1024
MAX_DEGREE: Final = 32
MAX_SIZE: Final = (1 << 63) - 1
"""Of a size, of a coefficient, and of the number of elements of a tensor."""

WORD: Final = re.compile(r"[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*+")
INT: Final = re.compile(r"\d++")
_INFIX: Final[dict[str, Callable[[Size, Size], Size]]] = {
    "*": lambda a, b: a * b,
    "//": floordiv,
    "%": mod,
}
FUNCTIONS: Final[dict[str, Callable[[Size, Size], Size]]] = {"min": minimum, "max": maximum}


def check_size(size: Size) -> str:
    """What is wrong with a size, if anything."""
    if not isinstance(size, Dim):
        return "" if -MAX_SIZE <= size <= MAX_SIZE else f"{str(size)[:MAX_DIGITS]} is too large for a size"
    if len(size.terms) > MAX_TERMS or any(len(m) > MAX_DEGREE or abs(c) > MAX_SIZE for m, c in size.terms):
        return "this size is too complicated"
    return ""


def _term_count(size: Size) -> int:
    return len(size.terms) if isinstance(size, Dim) else 1


class SizeReader:
    """Reads sizes from a cursor."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor

    def size(self, depth: int = 0) -> Size:
        """A size expression: integers, names, + - * // %, min(a, b), max(a, b)."""
        cursor = self.cursor
        start = cursor.pos
        total = self._term(depth)
        while True:
            if cursor.accept("+"):
                total = self._bounded(total + self._term(depth), start)
            elif cursor.accept("-"):
                total = self._bounded(total - self._term(depth), start)
            else:
                return total

    def _term(self, depth: int) -> Size:
        cursor = self.cursor
        sign = 1
        while cursor.accept("-"):
            sign = -sign
        start = cursor.pos
        total = self._factor(depth) * sign
        while True:
            operator = next((token for token in _INFIX if cursor.accept(token)), None)
            if operator is None:
                return total
            factor = self._factor(depth)
            if operator == "*" and _term_count(total) * _term_count(factor) > MAX_TERMS:
                raise cursor.error("this size is too complicated", "", start)
            try:
                total = self._bounded(_INFIX[operator](total, factor), start)
            except ZeroDivisionError as error:
                raise cursor.error(str(error), "", start) from None

    def _factor(self, depth: int) -> Size:
        cursor = self.cursor
        cursor.skip_space()
        start = cursor.pos
        if digits := cursor.match(INT):
            return self._bounded(self._int(digits, start), start)
        if depth > MAX_DEPTH:
            raise cursor.error("this is nested too deeply", f"at most {MAX_DEPTH} levels")
        if cursor.accept("("):
            size = self.size(depth + 1)
            cursor.expect(")")
            return size
        word = cursor.match(WORD)
        if word is None or not word.isidentifier():
            cursor.pos = start
            raise cursor.error(f"expected a size, found {cursor.next_word()}", "an integer, a name, or an expression")
        if word in FUNCTIONS and cursor.accept("("):
            left = self.size(depth + 1)
            cursor.expect(",")
            right = self.size(depth + 1)
            cursor.expect(")")
            return self._bounded(FUNCTIONS[word](left, right), start)
        return symbol(word)

    def _bounded(self, size: Size, start: int) -> Size:
        if wrong := check_size(size):
            raise self.cursor.error(wrong, "", start)
        return size

    def _int(self, digits: str, start: int) -> int:
        if len(digits) > MAX_DIGITS:
            raise self.cursor.error(f"this number has {len(digits)} digits", f"at most {MAX_DIGITS}", start)
        return int(digits)
