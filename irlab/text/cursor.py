"""Where the parser is in its text: white space, tokens, names, and errors with line and column."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from ..errors import ParseError
from .words import PLAIN_NAME, STRING

# A comment is `#` to the end of the line, or a line that begins with `//` (elsewhere `//` divides sizes).
_SPACE: Final = re.compile(r"(?:(?<![^\n])[ \t]*+//[^\n]*+|[ \t\r]++|\n|#[^\n]*+)*+")
_BLANKS: Final = re.compile(r"[ \t\r]*+")
_SHOWN: Final = re.compile(r'"[^"\n]{0,40}"?|[\w.%@\-]{1,40}|.', re.DOTALL)

LONGEST_COMPARED: Final = 100
"""Longer words are not compared with the known ones: the comparison takes quadratic time."""

LONGEST_MESSAGE: Final = 400
"""Messages quote the text, which may be anything."""


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that names the known word nearest to a wrong one."""
    close = get_close_matches(word, known, n=1) if len(word) <= LONGEST_COMPARED else []
    return f"did you mean '{close[0]}'?" if close else otherwise


class Cursor:
    """A position in a text. `accept` and its kin skip white space first."""

    __slots__ = ("pos", "source", "text")

    def __init__(self, text: str, source: str = "<text>") -> None:
        self.text, self.source, self.pos = text, source, 0

    def skip_space(self) -> None:
        found = _SPACE.match(self.text, self.pos)
        assert found
        self.pos = found.end()

    def skip_blanks(self) -> None:
        """Skip white space on this line only."""
        found = _BLANKS.match(self.text, self.pos)
        assert found
        self.pos = found.end()

    def skip_newline(self) -> None:
        """Move to the next line if nothing but blanks is left on this one."""
        self.skip_blanks()
        if self.text.startswith("\n", self.pos):
            self.pos += 1

    def peek(self) -> str:
        """The next character after white space; empty at the end."""
        self.skip_space()
        return self.text[self.pos : self.pos + 1]

    def accept(self, token: str) -> bool:
        """Move past `token` if it comes next."""
        self.skip_space()
        if self.text.startswith(token, self.pos):
            self.pos += len(token)
            return True
        return False

    def expect(self, token: str, hint: str = "") -> None:
        if not self.accept(token):
            raise self.error(f"expected '{token}', found {self.next_word()}", hint)

    def match(self, pattern: re.Pattern[str]) -> str | None:
        """Move past a match of `pattern`, if it comes next, and give its text."""
        self.skip_space()
        found = pattern.match(self.text, self.pos)
        if found is None:
            return None
        self.pos = found.end()
        return found[0]

    def string(self) -> str:
        """A quoted string."""
        self.skip_space()
        start = self.pos
        text = self.match(STRING)
        if text is None:
            if self.text.startswith('"', start):
                raise self.error("this string does not end", 'close it with " on the same line', start)
            raise self.error(f"expected a string in quotes, found {self.next_word()}", "", start)
        try:
            value: str = json.loads(text)
        except ValueError as error:
            reason = str(error).partition(":")[0].lower()
            raise self.error(f"bad string: {reason}", "strings are written as in JSON", start) from None
        return value

    def name(self, what: str) -> str:
        """A name, plain or in quotes."""
        if self.peek() == '"':
            return self.string()
        word = self.match(PLAIN_NAME)
        if word is None:
            raise self.error(f"expected {what}, found {self.next_word()}", "quote names that are not plain words")
        return word

    def next_word(self) -> str:
        """What comes next, for messages."""
        self.skip_space()
        found = _SHOWN.match(self.text, self.pos)
        return (
            f"'{found[0]}'" if found and found[0].isprintable() else "the end" if not found else "a control character"
        )

    def error(self, message: str, hint: str = "", at: int | None = None) -> ParseError:
        """The error to raise: here, or at position `at`."""
        pos = min(self.pos if at is None else at, len(self.text))
        line = self.text.count("\n", 0, pos) + 1
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]} ..."
        return ParseError(message, hint, line=line, column=pos - self.text.rfind("\n", 0, pos), source=self.source)
