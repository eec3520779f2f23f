"""Which numbers stand in for weights that are not at hand? Random ones, in the place of the leaves of recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from .ir import Module
from .types import TensorType
from .weight_uses import replace_weights
from .weights import Encode, Random, Recipe, WeightSymbol


def stand_ins(module: Module, wanted: Callable[[Recipe], bool]) -> dict[str, WeightSymbol]:
    """The weights of `module` that are made from `wanted` recipes, by name, with random numbers in their place."""
    found: dict[str, WeightSymbol] = {}
    for number, (name, symbol) in enumerate(module.weights.items()):
        recipe = _exchanged(symbol.recipe, wanted, number)
        if recipe is not symbol.recipe:
            found[name] = WeightSymbol(name, recipe)
    return found


def with_stand_ins(module: Module, wanted: Callable[[Recipe], bool]) -> list[str]:
    """Let random numbers stand in for the recipes that are `wanted`; the names of the weights that changed."""
    found = stand_ins(module, wanted)
    replace_weights(module.graph, found)
    return list(found)


def beyond_text(recipe: Recipe) -> bool:
    """Whether the numbers exist in this process only, so that no text can refer to them."""
    return not recipe.text_name


def missing(recipe: Recipe) -> bool:
    """Whether the recipe reads a file that is not there."""
    values = [getattr(recipe, field.name) for field in dataclasses.fields(recipe)]  # type: ignore[arg-type]
    return any(isinstance(value, Path) and not value.exists() for value in values)


def _exchanged(recipe: Recipe, wanted: Callable[[Recipe], bool], seed: int) -> Recipe:
    if wanted(recipe):
        return _random(recipe.type, seed)
    changes: dict[str, object] = {}
    for field in dataclasses.fields(recipe):  # type: ignore[arg-type]
        value = getattr(recipe, field.name)
        if isinstance(value, Recipe):
            new: object = _exchanged(value, wanted, seed)
        elif isinstance(value, tuple) and any(isinstance(item, Recipe) for item in value):
            new = tuple(_exchanged(v, wanted, seed) if isinstance(v, Recipe) else v for v in value)
            new = value if all(a is b for a, b in zip(new, value)) else new
        else:
            continue
        if new is not value:
            changes[field.name] = new
    return dataclasses.replace(recipe, **changes) if changes else recipe  # type: ignore[type-var]


def _random(type: TensorType, seed: int) -> Recipe:
    if type.encoding is None:
        return Random(type, seed)
    return Encode(Random(type.with_element(type.dtype), seed), type.encoding)
