"""Reading names and operands: values, weights, numbers."""

from __future__ import annotations

import re
from typing import Final

from ..ir import Graph, Value
from ..ops.literals import Constant
from ..types import DTYPES, Kind, tensor
from .attributes import admit
from .cursor import did_you_mean
from .environment import Env, Surroundings
from .printer import literal_text
from .words import name_text

KEY: Final = re.compile(r"[A-Za-z_]\w*+", re.ASCII)
_NUMBERED: Final = re.compile(r"\d++", re.ASCII)


class OperandReader:
    """Reads what stands for a value in `graph`, or names a new one."""

    def __init__(self, around: Surroundings, graph: Graph) -> None:
        self.around, self.graph = around, graph
        self.cursor, self.values = around.cursor, around.values
        self.env = Env(graph, around)

    def _reference(self) -> tuple[int, str, str | None]:
        """The value reference that comes next: its place, its canonical text, its name (None if it is a number)."""
        cursor = self.cursor
        cursor.skip_space()
        at = cursor.pos
        cursor.expect("%")
        if (digits := _NUMBERED.match(cursor.text, cursor.pos)) is not None:
            cursor.pos = digits.end()
            return at, "%" + digits[0], None
        name = cursor.name("the name of a value")
        return at, "%" + name_text(name), name

    def _new_name(self, what: str) -> tuple[int, str, str | None]:
        cursor = self.cursor
        if cursor.peek() != "%":
            raise cursor.error(f"expected {what}; found {cursor.next_word()}")
        at, token, name = self._reference()
        if token in self.env:
            raise cursor.error(f"{token} is defined twice", "every value has its own name", at)
        return at, token, name

    def _operand(self) -> Value | None:
        cursor = self.cursor
        first = cursor.peek()
        at = cursor.pos
        if first == "%":
            _, token, _ = self._reference()
            if token not in self.env:
                known = [name for name in self.env if name.startswith("%")]
                raise cursor.error(f"{token} is not defined", did_you_mean(token, known, "define it above"), at)
            return self.env[token]
        if first == "@":
            cursor.expect("@")
            token = "@" + name_text(cursor.name("the name of a weight"))
            if token not in self.around.table:
                hint = did_you_mean(token, self.around.table, f"declare it above the graph: {token} : type = recipe")
                raise cursor.error(f"{token} is not in the weight table", hint, at)
            return self.env[token]
        word = cursor.match(KEY)
        if word == "none":
            return None
        if word in DTYPES and cursor.accept("("):
            return self._literal(word, at)
        cursor.pos = at
        raise cursor.error(
            f"expected an operand, found {cursor.next_word()}", "%value, @weight, a number such as f32(2.0), or none"
        )

    def _literal(self, word: str, at: int) -> Value:
        cursor = self.cursor
        number = self.values.value()
        cursor.expect(")")
        dtype = DTYPES[word]
        try:
            number = admit("float" if dtype.kind is Kind.FLOAT else "Number", number)
        except ValueError as error:
            raise cursor.error(f"{word}(...) holds {error}", "", at) from None
        if isinstance(number, bool) and dtype.kind is not Kind.BOOL:
            number = int(number)
        token = literal_text(number, dtype)
        if token not in self.env:
            self.env[token] = self.graph.add(Constant(number, tensor(dtype, ()))).result
        return self.env[token]  # type: ignore[return-value]
