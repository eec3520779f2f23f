"""Reading what stands in types, attributes, metadata and recipes: types, numbers, lists, recipe expressions.

Text may be hostile: numbers, ranks and nesting are bounded here, before anything is computed from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Final

from ..dims import Dim, Size
from ..encodings import parse_encoding
from ..errors import IrlabError
from ..types import DTYPES, TensorType, tensor
from ..weights import Recipe
from .attributes import admit
from .cursor import Cursor, did_you_mean
from .recipes import RecipeField, recipe_fields
from .sizes import FUNCTIONS, INT, MAX_DEPTH, MAX_SIZE, WORD, SizeReader, check_size

MAX_RANK: Final = 64
_FLOAT: Final = re.compile(
    r"-?(?:\d++\.\d*+(?:[eE][+-]?\d++)?|\d++[eE][+-]?\d++|(?:inf|nan)(?![A-Za-z0-9_\x80-\U0010ffff]))"
)
_ENCODING_REST: Final = re.compile(r"<[^<>\n]*+>")
_SIMPLE_TYPE: Final = re.compile(r"[a-z0-9]++\[[^\]\n]*+\]")
_WORDS: Final[dict[str, bool | None]] = {"true": True, "false": False, "none": None}


def check_type(type: TensorType) -> str:
    """What is wrong with the shape of a type, if anything: its rank, a size, or the number of elements."""
    if len(type.shape) > MAX_RANK:
        return f"rank {len(type.shape)} is more than {MAX_RANK}"
    elements = 1
    for size in type.shape:
        if not isinstance(size, Dim):
            if size < 0:
                return f"size {size} is negative"
            elements *= max(size, 1)
        if wrong := check_size(size):
            return wrong
    return "" if elements <= MAX_SIZE else "the tensor has too many elements"


class ValueReader(SizeReader):
    """Reads values from a cursor. Recipes name files relative to `directory`."""

    def __init__(self, cursor: Cursor, directory: Path | None) -> None:
        super().__init__(cursor)
        self.directory = directory
        self._types: dict[str, TensorType] = {}

    # Types

    def tensor_type(self) -> TensorType:
        """A tensor type: `f32[batch, 2]`, `q<int4, sym, group=32, scale=f16>[64, 64]`."""
        cursor = self.cursor
        cursor.skip_space()
        start = cursor.pos
        simple = _SIMPLE_TYPE.match(cursor.text, start)
        if simple is not None:
            known = self._types.get(simple[0])
            if known is not None:
                cursor.pos = simple.end()
                return known
        word = cursor.match(WORD)
        element: Any = None
        if word is not None:
            element = self._encoding(word, start) if cursor.text.startswith("<", cursor.pos) else DTYPES.get(word)
        if element is None:
            cursor.pos = start
            what = cursor.next_word()
            raise cursor.error(
                f"expected a type, found {what}", did_you_mean(word or "", DTYPES, "types look like f32[batch, 64]")
            )
        return self._shaped(element, start)

    def _shaped(self, element: Any, start: int) -> TensorType:
        """The type with `element`, whose shape comes next."""
        cursor = self.cursor
        cursor.expect("[", "the shape; a tensor of rank 0 is f32[]")
        shape: list[Size] = []
        while not cursor.accept("]"):
            if shape:
                cursor.expect(",")
            shape.append(self.size())
            if len(shape) > MAX_RANK:
                raise cursor.error(f"a tensor has at most {MAX_RANK} dimensions", "", start)
        found = tensor(element, tuple(shape))
        if wrong := check_type(found):
            raise cursor.error(wrong, "", start)
        self._types[cursor.text[start : cursor.pos]] = found
        return found

    def _encoding(self, word: str, start: int) -> Any:
        rest = self.cursor.match(_ENCODING_REST)
        if rest is None:
            raise self.cursor.error(f"expected an encoding such as {word}<...>", "", start)
        try:
            return parse_encoding(word + rest)
        except IrlabError as error:
            raise self.cursor.error(error.message, error.hint, start) from None
        except (ArithmeticError, LookupError, TypeError, ValueError):
            raise self.cursor.error(f"'{word}{rest}' is not an encoding", "", start) from None

    # Any value

    def value(self, sequence: Callable[[list[Any]], Any] = tuple, recipes: bool = False, depth: int = 0) -> Any:
        """Any attribute value. Lists become `sequence`; `recipes` says whether a recipe may stand here."""
        cursor = self.cursor
        first = cursor.peek()
        start = cursor.pos
        if depth > MAX_DEPTH:
            raise cursor.error("this is nested too deeply", f"at most {MAX_DEPTH} levels")
        if first == '"':
            return cursor.string()
        if first == "[":
            return sequence(self._list(sequence, recipes, depth))
        if first == "{":
            return self._dict(sequence, depth)
        if (number := cursor.match(_FLOAT)) is not None:
            return float(number)
        word = cursor.match(WORD)
        if word is None:
            return self._size_or_int(first, start)
        if word in _WORDS:
            return _WORDS[word]
        following = cursor.text[cursor.pos : cursor.pos + 1]
        if following == "<" or word in DTYPES:
            element: Any = self._encoding(word, start) if following == "<" else DTYPES[word]
            return self._shaped(element, start) if cursor.text.startswith("[", cursor.pos) else element
        if following == "(" and word not in FUNCTIONS:
            if recipes:
                return self._recipe(word, start, None, depth)
            raise cursor.error(f"'{word}' is not a function of sizes", "only min and max are", start)
        cursor.pos = start
        return self.size()

    def _size_or_int(self, first: str, start: int) -> Size:
        # Plain integers may be larger than sizes (u64 constants are).
        cursor = self.cursor
        if not first or first not in "-(0123456789":
            raise cursor.error(f"expected a value, found {cursor.next_word()}")
        sign = -1 if cursor.accept("-") else 1
        digits = cursor.match(INT)
        if digits is not None and cursor.peek() not in ("+", "-", "*", "/", "%"):
            return sign * self._int(digits, start)
        cursor.pos = start
        return self.size()

    def _list(self, sequence: Callable[[list[Any]], Any], recipes: bool, depth: int) -> list[Any]:
        cursor = self.cursor
        cursor.expect("[")
        items: list[Any] = []
        while not cursor.accept("]"):
            items.append(self.value(sequence, recipes, depth + 1))
            if not cursor.accept(","):
                cursor.expect("]", "separate items by commas")
                break
        return items

    def _dict(self, sequence: Callable[[list[Any]], Any], depth: int) -> dict[Any, Any]:
        cursor = self.cursor
        cursor.expect("{")
        items: dict[Any, Any] = {}
        while not cursor.accept("}"):
            cursor.skip_space()
            start = cursor.pos
            key = self.value(sequence, depth=depth + 1)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise cursor.error("a key is a string or a number", "", start)
            if key in items:
                raise cursor.error(f"the key {key!r} stands twice", "", start)
            cursor.expect(":")
            items[key] = self.value(sequence, depth=depth + 1)
            if not cursor.accept(","):
                cursor.expect("}", "separate items by commas")
                break
        return items

    # Recipes

    def recipe(self, stated: TensorType) -> Recipe:
        """The recipe of a weight whose type was stated before."""
        cursor = self.cursor
        cursor.skip_space()
        start = cursor.pos
        word = cursor.match(WORD)
        if word is None:
            raise cursor.error(
                f"expected a recipe, found {cursor.next_word()}", 'for example file("x.safetensors", "w")'
            )
        return self._recipe(word, start, stated, 0)

    def _recipe(self, word: str, start: int, stated: TensorType | None, depth: int) -> Recipe:
        cursor = self.cursor
        cls = Recipe.registry.get(word)
        if cls is None:
            known = ", ".join(sorted(Recipe.registry))
            raise cursor.error(
                f"unknown recipe '{word}'", did_you_mean(word, Recipe.registry, f"known: {known}"), start
            )
        cursor.expect("(")
        positional: list[tuple[Any, int]] = []
        named: dict[str, tuple[Any, int]] = {}
        while not cursor.accept(")"):
            cursor.skip_space()
            at = cursor.pos
            name = cursor.match(WORD)
            if name is not None and cursor.accept("="):
                if name in named:
                    raise cursor.error(f"{name} is given twice", "", at)
                named[name] = self.value(recipes=True, depth=depth + 1), at
            else:
                cursor.pos = at
                positional.append((self.value(recipes=True, depth=depth + 1), at))
            if not cursor.accept(","):
                cursor.expect(")", "separate arguments by commas")
                break
        arguments = self._arguments(word, cls, positional, named, stated, start)
        try:
            recipe = cls(**arguments)
            made = recipe.type
        except IrlabError as error:
            raise cursor.error(error.message, error.hint, start) from None
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise cursor.error(f"the arguments of {word} do not fit: {error}", "", start) from None
        if wrong := check_type(made):
            raise cursor.error(wrong, "", start)
        if stated is not None and made is not stated:
            raise cursor.error(f"this recipe makes a {made}, the weight is declared as {stated}", "", start)
        return recipe

    def _arguments(
        self,
        word: str,
        cls: type[Recipe],
        positional: list[tuple[Any, int]],
        named: dict[str, tuple[Any, int]],
        stated: TensorType | None,
        start: int,
    ) -> dict[str, Any]:
        cursor = self.cursor
        arguments: dict[str, Any] = {}
        remaining = positional[::-1]
        fields = recipe_fields(cls)
        for field in fields:
            typed = bool(remaining) and isinstance(remaining[-1][0], TensorType)
            if field.name in named:
                arguments[field.name] = self._admitted(word, field, *named.pop(field.name))
            elif field.is_stated and stated is not None and not typed:
                arguments[field.name] = stated
            elif remaining:
                arguments[field.name] = self._admitted(word, field, *remaining.pop())
            elif field.default is MISSING:
                raise cursor.error(f"{word} needs its argument '{field.name}'", "", start)
        if named:
            name, (_, at) = next(iter(named.items()))
            raise cursor.error(f"{word} has no argument '{name}'", did_you_mean(name, [f.name for f in fields]), at)
        if remaining:
            raise cursor.error(f"{word} has too many arguments", "", remaining[-1][1])
        return arguments

    def _admitted(self, word: str, field: RecipeField, value: Any, at: int) -> Any:
        try:
            admitted = admit(field.annotation, value)
        except ValueError as error:
            raise self.cursor.error(f"{field.name} of {word} must be {error}", "", at) from None
        if field.annotation == "Path":
            return self._path(admitted)
        if field.annotation == "tuple[Path, ...]":
            return tuple(map(self._path, admitted))
        return admitted

    def _path(self, text: str) -> Path:
        return self.directory / text if self.directory is not None else Path(text)
