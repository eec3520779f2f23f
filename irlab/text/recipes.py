"""Weight recipes as expressions: `transpose(file("model.safetensors", "wte.weight"), [1, 0])`.

Driven by the fields of the recipe dataclasses, so that a new recipe prints and parses without a change here: required
fields stand by position, fields that differ from their default by name. A field that repeats the type stated in the
weight table is left out, which is why a file reference shows no type of its own.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Final

from ..types import TensorType
from ..weights import Recipe
from .attributes import value_text
from .words import recipe_name


@dataclass(frozen=True)
class RecipeField:
    """A field of a recipe class, as text sees it."""

    name: str
    annotation: str
    default: Any
    is_stated: bool
    """Whether it is the only type that the class requires: left out where it equals the type in the weight table."""


@cache
def recipe_fields(cls: type[Recipe]) -> tuple[RecipeField, ...]:
    """The constructor fields of a recipe class, in order."""
    found: list[tuple[str, str, Any]] = []
    for field in fields(cls):  # type: ignore[arg-type]
        if field.init:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            annotation = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
            found.append((field.name, annotation, default))
    types = [name for name, annotation, default in found if annotation == "TensorType" and default is MISSING]
    return tuple([RecipeField(*parts, is_stated=types == [parts[0]]) for parts in found])


def recipe_text(recipe: Recipe, stated: TensorType | None = None) -> str:
    """The expression for `recipe`. `stated` is the type that stands beside it, for the recipe of a whole weight."""
    arguments = []
    for field in recipe_fields(type(recipe)):
        value = getattr(recipe, field.name)
        if field.is_stated and value is stated:
            continue
        text = _argument_text(value)
        if field.default is MISSING:
            arguments.append(text)
        elif text != _argument_text(field.default):
            arguments.append(f"{field.name}={text}")
    return f"{recipe_name(type(recipe).__name__)}({', '.join(arguments)})"


def _argument_text(value: object) -> str:
    if isinstance(value, Recipe):
        return recipe_text(value)
    if isinstance(value, tuple) and any(isinstance(item, Recipe) for item in value):
        return "[" + ", ".join(map(_argument_text, value)) + "]"
    return value_text(value)


_found: Final[dict[str, type[Recipe]]] = {}


def recipe_classes() -> dict[str, type[Recipe]]:
    """Every recipe class defined so far, by the word that text uses for it."""
    pending: list[type[Recipe]] = [Recipe]  # type: ignore[type-abstract]
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        if is_dataclass(cls):
            _found[recipe_name(cls.__name__)] = cls
    return _found


def recipe_class(word: str) -> type[Recipe] | None:
    """The recipe class that `word` names, if there is one."""
    return _found.get(word) or recipe_classes().get(word)
