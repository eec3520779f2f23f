"""Options as frozen dataclass fields: `quantize{scheme=int4 group=32}` is `Quantize(scheme="int4", group=32)`.

Passes and backends are configured so. A field's annotation says how its text is read: int, float, bool, str, `Bytes`
(`700MB`), `tuple[T, ...]` (a comma list), `Literal[...]` (one of some names), each also with `| None`. Which numbers
make sense is said with the type: `Annotated[int, Bounds(1)]`. NaN and infinities never do.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NewType, TypeVar

from .errors import UsageError

Bytes = NewType("Bytes", int)
"""A size in bytes; text such as 700MB or 1.5GiB is understood."""

_UNITS = {"": 1, "b": 1}
_UNITS.update({f"{p}b": 1000**i for i, p in enumerate("kmgt", 1)})
_UNITS.update({f"{p}ib": 1024**i for i, p in enumerate("kmgt", 1)})
_UNITS.update({p: 1000**i for i, p in enumerate("kmgt", 1)})

C = TypeVar("C", bound="Configurable")


@dataclass(frozen=True)
class Bounds:
    """The numbers that an option takes: from `least` to `most`, these included; more than `above`, less than `below`.

    `idle` is the one that leaves everything as it is: it is for some layers, where others have another.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    idle: float | None = None

    def __contains__(self, number: float) -> bool:
        return self.least <= number <= self.most and self.above < number < self.below

    def __str__(self) -> str:
        if math.isfinite(self.least) and math.isfinite(self.most):
            return f"from {self.least} to {self.most}"
        sides = {"of at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{words} {bound}" for words, bound in sides.items() if math.isfinite(bound))


class Configurable:
    """Base of what has options: a frozen dataclass whose fields are them, with a `name`."""

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that make no sense. Subclasses with rules of their own call it first."""
        for option in self.options():
            option.require(getattr(self, option.field), self.name)

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring: what `--list-...` shows."""
        return (cls.__doc__ or "").strip().split("\n", 1)[0]

    @classmethod
    def options(cls) -> list[Option]:
        """The options that text may set, in order of declaration."""
        if not dataclasses.is_dataclass(cls):
            return []
        hints = typing.get_type_hints(cls, include_extras=True)
        return [
            Option(f.name, hints[f.name], f.default, f.metadata.get("text", f.name))
            for f in dataclasses.fields(cls)
            if f.init
        ]

    @classmethod
    def configure(cls: type[C], given: Mapping[str, str]) -> C:
        """An instance with the options `given` as text. Raises UsageError naming option and class."""
        values = cls.read_options(given)
        missing = [o.text_name for o in cls.options() if o.default is dataclasses.MISSING and o.field not in values]
        if missing:
            raise UsageError(f"{cls.name} needs the option '{missing[0]}'", f"write {cls.name}{{{missing[0]}=...}}")
        return cls(**values)

    @classmethod
    def read_options(cls, given: Mapping[str, str]) -> dict[str, Any]:
        """The values of the options `given` as text, by field. Raises UsageError naming option and class."""
        known = {o.text_name: o for o in cls.options()}
        values: dict[str, Any] = {}
        for key, text in given.items():
            option = known.get(key) or known.get(key.replace("_", "-"))
            if option is None:
                raise UsageError(f"unknown option '{key}' of {cls.name}", did_you_mean(key, known))
            values[option.field] = option.parse(text, cls.name)
        return values

    def option_text(self, *, resolved: bool = False) -> str:
        """The options that differ from their defaults (`resolved`: all) as text: `{scheme=int4 group=32}`."""
        shown = [
            f"{o.text_name}={format_value(getattr(self, o.field))}"
            for o in self.options()
            if resolved or getattr(self, o.field) != o.default
        ]
        return "{" + " ".join(shown) + "}" if shown else ""

    def __str__(self) -> str:
        return self.name + self.option_text()


@dataclass(frozen=True)
class Option:
    """One option: the dataclass field behind it, its type and default, and its name in text."""

    field: str
    type: Any
    default: Any
    text_name: str

    def parse(self, text: str, owner: str) -> Any:
        """The value that `text` stands for; UsageError names the option and what it takes."""
        try:
            value = _read(self.type, text)
        except ValueError:
            raise self._error(text, owner) from None
        if not _makes_sense(self.type, value):
            raise self._error(text, owner)
        return value

    def require(self, value: Any, owner: str) -> None:
        """Raise UsageError, naming the option, for numbers that are out of its range."""
        if not _makes_sense(self.type, value):
            raise self._error(plain_text(value), owner)

    def _error(self, text: str, owner: str) -> UsageError:
        takes = f"option '{self.text_name}' of {owner} takes {describe_type(self.type)}, not {text!r}"
        return UsageError(takes, _near_choice(text, self.type))

    @property
    def idle(self) -> float | None:
        """The number that leaves everything as it is, if there is one."""
        return next((r.idle for r in _ranges(self.type) if r.idle is not None), None)

    @property
    def type_text(self) -> str:
        return describe_type(self.type)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint: the nearest known word, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, 1, 0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(known)}" if known else "it takes none"


def _near_choice(word: str, hint: Any) -> str:
    """A hint where one of the names that `hint` takes is near."""
    names = [str(name) for part in (hint, *typing.get_args(hint)) for name in _names(part)]
    return did_you_mean(word, names) if difflib.get_close_matches(word, names, 1, 0.5) else ""


def _names(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def parse_bytes(text: str) -> int:
    """The bytes in `700MB`, `1.5GiB`, `4096`; raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if not match or match[2] not in _UNITS:
        raise ValueError(text)
    return round(float(match[1]) * _UNITS[match[2]])


def format_value(value: object) -> str:
    """The text of an option value, such that reading it gives the value back."""
    return quoted(plain_text(value))


def plain_text(value: object) -> str:
    """The text of an option value without the quotes that pipeline text may need."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    return ",".join(map(plain_text, value)) if isinstance(value, list | tuple) else str(value)


def quoted(text: str) -> str:
    """`text` as pipeline text takes it: in quotes where it is no plain word."""
    if re.fullmatch(r"[\w.+\-*/:,@\[\]]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _ranges(hint: Any) -> list[Bounds]:
    """The ranges of numbers that stand in a type."""
    if typing.get_origin(hint) is typing.Annotated:
        return [extra for extra in hint.__metadata__ if isinstance(extra, Bounds)]
    return [found for part in typing.get_args(hint) for found in _ranges(part)]


def _makes_sense(hint: Any, value: Any) -> bool:
    """Whether the numbers in `value`, an option of type `hint`, are finite and in their ranges."""
    if isinstance(value, list | tuple):
        return all(_makes_sense(hint, item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return (isinstance(value, int) or math.isfinite(value)) and all(value in range_ for range_ in _ranges(hint))


_PLURAL = {"an integer": "integers", "a number": "numbers", "a name": "names", "a size such as 700MB": "sizes"}


def describe_type(hint: Any) -> str:
    """A type in the words of an error message."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return " ".join([describe_type(args[0]), *map(str, _ranges(hint))])
    if origin is typing.Literal:
        return " | ".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(a) if a is not type(None) else "none" for a in args)
    if origin is tuple:
        return f"a comma list of {_plural(args[0])}"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a name", Bytes: "a size such as 700MB"}
    return words.get(hint, str(hint))


def _plural(hint: Any) -> str:
    plain = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    one = describe_type(plain)
    return describe_type(hint).replace(one, _PLURAL.get(one, one), 1)


def _read(hint: Any, text: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _read(args[0], text)
    if origin is typing.Literal:
        return _read_literal(args, text)
    if origin in (typing.Union, types.UnionType):
        if text == "none" and type(None) in args:
            return None
        for arg in (a for a in args if a is not type(None)):
            try:
                return _read(arg, text)
            except ValueError:
                continue
        raise ValueError(text)
    if origin is tuple:
        return tuple(_read(args[0], part) for part in text.split(",") if part)
    if hint is bool:
        return {"true": True, "false": False}[text] if text in ("true", "false") else _reject(text)
    if hint is Bytes:
        return parse_bytes(text)
    if hint in (int, float, str):
        return hint(text)
    raise TypeError(f"no option can have the type {hint}")


def _read_literal(choices: tuple[Any, ...], text: str) -> Any:
    for choice in choices:
        if str(choice) == text:
            return choice
    raise ValueError(text)


def _reject(text: str) -> Any:
    raise ValueError(text)
