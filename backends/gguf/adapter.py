"""How does a low-rank update of a weight become a LoRA adapter beside the file?

While the file is made the update rides on the recipe of its weight (`Base`), so that whatever is done to the rows of
the weight can be done to those of the factor b; then it is taken off and stands in the graph again, which computes what
llama.cpp does with both files. The keys are those of llama.cpp's convert_lora_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from irlab import low_rank
from irlab.encodings import Codes, ggml
from irlab.errors import LegalityError
from irlab.ir import Module, Weight
from irlab.low_rank import Update, attach, detach, factor_names
from irlab.ops import nn, prim
from irlab.passmgr import Context
from irlab.registry import pass_class
from irlab.types import TensorType
from irlab.weight_uses import replace_weights
from irlab.weights import Affine, Encode, Recipe, Take, WeightSymbol
from irlab.weights.recipe import AnyArray

SUFFIX: Final = ".lora.gguf"
"""What the adapter of MODEL.gguf is called: MODEL.lora.gguf."""


@dataclass(frozen=True)
class Base(Recipe, text_name=""):
    """`source`, with the factors of its update, which stay apart from it."""

    source: Recipe
    a: Recipe
    b: Recipe

    @property
    def type(self) -> TensorType:
        return self.source.type

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.source.rows(start, stop)

    def codes(self, start: int, stop: int) -> Codes:
        return self.source.codes(start, stop)


def multiply_out(module: Module, ctx: Context) -> int:
    """Let low-rank matrices that stand alone, of which GGUF has no form, be whole ones; returns how many there are."""
    count = low_rank.multiply_out(module.graph, encoded=True)
    if count:
        pass_class("fuse")().run(module, ctx)
    return count


def take_off(module: Module, ctx: Context) -> int:
    """Let updates ride on their weights, in a graph that reads as if there were none; returns how many there are."""
    if not module.graph.find(nn.LowRankLinear):
        return 0
    updates = detach(module.graph)
    weights = module.weights
    riding = {name: Base(weights[name].recipe, u.a.recipe, u.b.recipe) for name, u in updates.items()}
    replace_weights(module.graph, {name: WeightSymbol(name, recipe) for name, recipe in riding.items()})
    pass_class("fuse")().run(module, ctx)
    return len(updates)


def put_back(module: Module, type_name: str) -> None:
    """Let the graph of a file compute with the updates that ride on its weights; `type_name` is what stores factors."""
    updates: dict[str, Update] = {}
    for op in module.graph.find(Weight):
        name = op.symbol.name
        base, factors = _apart(op.symbol.recipe, name)
        if factors is not None:
            stored = [_stored(f, type_name) for f in factors]
            updates[name] = Update(*(WeightSymbol(n, f) for n, f in zip(factor_names(name), stored)))
            module.graph.replace(op, prim.weight(WeightSymbol(name, base)))
    attach(module.graph, updates)


def _stored(factor: Recipe, type_name: str) -> Recipe:
    return factor if type_name == "F32" or factor.type.encoding is not None else Encode(factor, ggml(type_name))


def _apart(recipe: Recipe, name: str) -> tuple[Recipe, tuple[Recipe, Recipe] | None]:
    """The recipe without what rides on it, and the factors a and b that belong to its rows."""
    if isinstance(recipe, Base):
        return recipe.source, (recipe.a, recipe.b)
    source = getattr(recipe, "source", None)
    if isinstance(source, Recipe):
        base, factors = _apart(source, name)
        if factors is None:
            return recipe, None
        a, b = factors
        if isinstance(recipe, Take) or (isinstance(recipe, Affine) and not recipe.offset):
            b = replace(recipe, source=b)
        return replace(recipe, source=base), (a, b)  # type: ignore[type-var]
    if any(_apart(each, name)[1] is not None for each in recipe.inputs):
        raise LegalityError(
            f"GGUF: {name} is joined of several weights here, and a low-rank correction belongs to one",
            "leave out correct, or use --emit onnx",
        )
    return recipe, None


def is_factor(name: str) -> bool:
    """Whether a tensor of this name belongs into the adapter."""
    return name.endswith((".lora_a", ".lora_b"))


def metadata(base: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the adapter for a file with the keys `base`. An alpha of 0 leaves b @ a as it is at any rank."""
    return {
        "general.architecture": base["general.architecture"],
        "general.type": "adapter",
        "general.name": f"{base['general.name']} correction",
        "adapter.type": "lora",
        "adapter.lora.alpha": 0.0,
    }
