"""Which numbers stand in for weights that are not at hand? Random ones, in the place of the leaves of recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from .ir import Module
from .types import TensorType
from .weight_uses import replace_weights
from .weights import Encode, Random, Recipe, WeightSymbol, rebuilt


def stand_ins(module: Module, wanted: Callable[[Recipe], bool]) -> dict[str, WeightSymbol]:
    """The weights of `module` that are made from `wanted` recipes, by name, with random numbers in their place."""
    found: dict[str, WeightSymbol] = {}
    for number, (name, symbol) in enumerate(module.weights.items()):
        recipe = rebuilt(symbol.recipe, lambda r, seed=number: _random(r.type, seed) if wanted(r) else None)  # type: ignore[misc]
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


def _random(type: TensorType, seed: int) -> Recipe:
    if type.encoding is None:
        return Random(type, seed)
    return Encode(Random(type.with_element(type.dtype), seed), type.encoding)
