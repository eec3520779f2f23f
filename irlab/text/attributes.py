"""How attribute values look in text, which attributes are left out, and which values an annotation admits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from ..dims import Dim
from ..encodings import Encoding
from ..errors import IRError
from ..opdef import REQUIRED, Field, FieldKind
from ..types import DType, TensorType
from ..weights import Recipe
from .words import RESERVED, quote

if TYPE_CHECKING:
    from ..ir import Op

_LEADING_WORD: Final = re.compile(r"-?([^\W\d]\w*)")


def float_text(number: Any) -> str:
    """The shortest text that reads back as the same number; never that of an integer."""
    return float.__repr__(float(number))


def size_text(size: Dim) -> str:
    """A symbolic size where any value may stand: in parentheses if it would read as another word."""
    text = str(size)
    word = _LEADING_WORD.match(text)
    return f"({text})" if word and word[1] in RESERVED else text


def value_text(value: object) -> str:
    """Any attribute value or metadata value; raises IRError for an object that text cannot express."""
    write = _WRITERS.get(type(value))
    if write is not None:
        return write(value)
    for base, write in _WRITERS.items():
        if isinstance(value, base):
            return write(value)
    raise IRError(
        f"text cannot express a value of type {type(value).__name__}",
        "use numbers, strings, sizes, dtypes, types, encodings, and tuples or dicts of them",
    )


def _mapping_text(mapping: Mapping[Any, Any]) -> str:
    return "{" + ", ".join(f"{value_text(k)}: {value_text(v)}" for k, v in mapping.items()) + "}"


def _sequence_text(items: Any) -> str:
    return "[" + ", ".join(map(value_text, items)) + "]"


# bool before Integral, and both before Real: the first base that fits decides for classes that are not listed.
_WRITERS: Final[dict[type, Callable[[Any], str]]] = {
    bool: lambda value: "true" if value else "false",
    int: repr,
    float: float_text,
    str: quote,
    tuple: _sequence_text,
    list: _sequence_text,
    dict: _mapping_text,
    type(None): lambda value: "none",
    Dim: size_text,
    DType: str,
    TensorType: str,
    Encoding: str,
    PurePath: lambda value: quote(value.as_posix()),
    Mapping: _mapping_text,
    Integral: lambda value: repr(int(value)),
    Real: float_text,
}


def _float_field_text(value: Any) -> str:
    return float_text(value) if isinstance(value, (float, Real)) else value_text(value)


def _int_field_text(value: Any) -> str:
    return int.__repr__(value) if type(value) is int else value_text(value)


_FIELD_WRITERS: Final[dict[str, Callable[[Any], str]]] = {
    "float": _float_field_text,
    "int": _int_field_text,
    "Axis": _int_field_text,
}


def field_writer(field: Field) -> Callable[[Any], str]:
    """The function that writes this field's values: a float field never shows an integer."""
    return _FIELD_WRITERS.get(field.annotation, value_text)


# What a required attribute is when the text leaves it out: it repeats what the stated result types say.
_REPEATED: Final[dict[str, Callable[[tuple[TensorType, ...]], object]]] = {
    "TensorType": lambda types: types[0],
    "DType": lambda types: types[0].element,
    "Shape": lambda types: types[0].shape,
    "tuple[TensorType, ...]": lambda types: types,
}


def said_by_types(field: Field) -> Callable[[tuple[TensorType, ...]], object] | None:
    """For a required attribute that by its annotation may repeat the result types: what they say it is."""
    if field.kind is not FieldKind.ATTRIBUTE or field.default is not REQUIRED:
        return None
    return _REPEATED.get(field.annotation)


def repeats_types(field: Field) -> Callable[[Op, Any], bool] | None:
    """For the same attributes: whether a value is what the result types of its op say."""
    said = said_by_types(field)
    if said is None:
        return None

    def repeats(op: Op, value: Any) -> bool:
        types = tuple([result.type for result in op.results])
        return bool(types) and bool(said(types) == value)

    return repeats


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return _is_int(value) or isinstance(value, Dim)


# What an annotation admits, and how to say so. An annotation that is not listed admits anything that can be written.
_ADMITTED: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "int": (_is_int, "an integer"),
    "Axis": (_is_int, "an integer"),
    "float": (lambda value: _is_int(value) or isinstance(value, float), "a number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "str": (lambda value: isinstance(value, str), "a string"),
    "Number": (lambda value: isinstance(value, (bool, int, float)), "a number, true or false"),
    "Size": (_is_size, "a size"),
    "DType": (lambda value: isinstance(value, DType), "a dtype such as f32"),
    "TensorType": (lambda value: isinstance(value, TensorType), "a type such as f32[2, 3]"),
    "Encoding": (lambda value: isinstance(value, Encoding), "an encoding such as q<...>"),
    "Path": (lambda value: isinstance(value, str), "a string"),
    "Recipe": (lambda value: isinstance(value, Recipe), "a recipe such as file(...)"),
    "None": (lambda value: value is None, "none"),
}
_SEQUENCES: Final = {"Shape": "Size", "Axes": "int"}


def admit(annotation: str, value: Any) -> Any:
    """`value` as a field of this annotation stores it; raises ValueError with what was expected instead."""
    if annotation == "float" and _is_int(value):
        return _float_of(value)
    if annotation in _ADMITTED:
        fits, expected = _ADMITTED[annotation]
        if not fits(value):
            raise ValueError(expected)
        return value
    if annotation in _SEQUENCES or (annotation.startswith("tuple[") and annotation.endswith(", ...]")):
        item = _SEQUENCES.get(annotation) or annotation[len("tuple[") : -len(", ...]")]
        if not isinstance(value, tuple):
            raise ValueError("a list")
        try:
            return tuple([admit(item, v) for v in value])
        except ValueError as error:
            raise ValueError(f"a list, each item {error}") from None
    if " | " in annotation and "[" not in annotation:
        return _admit_any(annotation.split(" | "), value)
    return value


def _admit_any(choices: list[str], value: Any) -> Any:
    # A float field that also admits integers must not turn them into floats.
    expected = []
    for choice in sorted(choices, key=lambda c: c == "float"):
        try:
            return admit(choice, value)
        except ValueError as error:
            expected.append(str(error))
    raise ValueError(" or ".join(expected))


def _float_of(number: int) -> float:
    try:
        return float(number)
    except OverflowError:
        raise ValueError("a number that fits in a float") from None
