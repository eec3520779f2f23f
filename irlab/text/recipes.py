"""Weight recipes as expressions: `transpose(file("model.safetensors", "wte.weight"), [1, 0])`.

Driven by the fields of the recipe dataclasses, so that a new recipe prints and parses without a change here: required
fields stand by position, fields that differ from their default by name. A field that repeats the type stated in the
weight table is left out, which is why a file reference shows no type of its own.
"""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from ..types import TensorType
from ..weights import Recipe
from .attributes import value_text
from .words import quote


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


def recipe_text(recipe: Recipe, stated: TensorType | None = None, directory: Path | None = None) -> str:
    """The expression for `recipe`. `stated` is the type that stands beside it, for the recipe of a whole weight; files
    are named relative to `directory`. A recipe that text cannot hold shows as `name(...)`, which does not parse."""
    if not recipe.text_name:
        return f"{type(recipe).__name__.lower()}(...)"
    arguments = []
    for field in recipe_fields(type(recipe)):
        value = getattr(recipe, field.name)
        if field.is_stated and value is stated:
            continue
        text = _argument_text(value, directory)
        if field.default is MISSING:
            arguments.append(text)
        elif text != _argument_text(field.default, directory):
            arguments.append(f"{field.name}={text}")
    return f"{recipe.text_name}({', '.join(arguments)})"


def _argument_text(value: object, directory: Path | None) -> str:
    if isinstance(value, Recipe):
        return recipe_text(value, None, directory)
    if isinstance(value, PurePath):
        return quote(_relative(value, directory))
    if isinstance(value, tuple) and any(isinstance(item, Recipe | PurePath) for item in value):
        return f"[{', '.join([_argument_text(item, directory) for item in value])}]"
    return value_text(value)


def _relative(path: PurePath, directory: Path | None) -> str:
    """`path` seen from `directory`; as it is, where the two have nothing in common (other drives on Windows)."""
    if directory is not None:
        try:
            return PurePath(os.path.relpath(path, directory)).as_posix()
        except ValueError:
            pass
    return path.as_posix()
