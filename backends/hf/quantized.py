"""How is a proven module with encoded matrices written in one of the layouts of quantised checkpoints?"""

from __future__ import annotations

from irlab.errors import InputError, LegalityError
from irlab.ir import Graph, Module
from irlab.layouts import LAYOUTS, Names, laid_out
from irlab.ops import nn
from irlab.target import PlanRow
from irlab.weight_uses import WeightUses, weight_uses
from irlab.weights import Cast, Recipe, WeightSymbol, static_shape


def plan_rows(graph: Graph, layout: str) -> list[PlanRow]:
    """What becomes of the encoded weights of `graph`, by encoding."""
    rows: dict[tuple[str, str], int] = {}
    for uses in weight_uses(graph).values():
        kind = uses.symbol.type
        if kind.encoding is not None:
            reason = _reason(uses, layout) or LAYOUTS[layout].refusal(kind.encoding, static_shape(kind))
            rows[str(kind.encoding), reason] = rows.get((str(kind.encoding), reason), 0) + 1
    return [
        PlanRow(f"{count} weights in {encoding}", "none" if reason else "native", reason or f"its codes, as {layout}")
        for (encoding, reason), count in rows.items()
    ]


def quantized_names(module: Module) -> Names:
    """The linear layers of a legalised module by the names of their modules. Raises LegalityError where there is
    nothing to lay out."""
    uses = weight_uses(module.graph)
    encoded, plain = {}, []
    for name, ours in module.metadata["tensors"].items():
        if not uses[ours].is_matrix:
            continue
        stem, source = _stem(name), _encoded(uses[ours].symbol.recipe)
        if source is None:
            plain.append(stem)
        elif source.type.encoding is not None:
            encoded[stem] = source.type.encoding
    if not encoded:
        raise LegalityError("hf: no matrix of a linear layer is encoded, there is nothing to lay out", "run quantize")
    if module.metadata["config"].get("tie_word_embeddings") and "lm_head" not in encoded:
        plain.append("lm_head")
    return Names(encoded, plain)


def require_holds(module: Module, layout: str) -> None:
    """Refuse, by name, what `layout` cannot hold."""
    uses = weight_uses(module.graph)
    for name, ours in module.metadata["tensors"].items():
        recipe = uses[ours].symbol.recipe
        source = _encoded(recipe)
        if source is None:
            if any(part.type.encoding is not None for part in recipe.inputs):
                hint = "emit it to gguf or onnx, or leave correct out"
                raise LegalityError(f"hf: the {layout} layout holds no low-rank correction, as {name} has", hint)
            continue
        encoding = source.type.encoding
        assert encoding is not None
        reason = _reason(uses[ours], layout) or LAYOUTS[layout].refusal(encoding, static_shape(source.type))
        if reason:
            raise LegalityError(f"hf: {name}: {reason}", f"quantize{{exclude={ours}}}, or another scheme or layout")


def quantized_tensors(module: Module, layout: str) -> list[WeightSymbol]:
    """The tensors of a legalised module: those of encoded matrices in `layout`, the others as they are."""
    weights = module.weights
    found: list[WeightSymbol] = []
    for name, ours in module.metadata["tensors"].items():
        recipe = weights[ours].recipe
        source = _encoded(recipe)
        if source is None:
            found.append(WeightSymbol(name, recipe))
            continue
        try:
            found += laid_out(_stem(name), source, LAYOUTS[layout])
        except InputError as error:
            raise LegalityError(f"hf: {error.message}") from None
    return found


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


def _encoded(recipe: Recipe) -> Recipe | None:
    """The encoded weight that `recipe` decodes; None for one that is plain, or that more was done to."""
    return recipe.source if isinstance(recipe, Cast) and recipe.source.type.encoding is not None else None


def _reason(uses: WeightUses, layout: str) -> str:
    if any(isinstance(op, nn.Embedding) for op, _ in uses.users):
        return f"the {layout} layout holds linear layers, not tables of embeddings"
    return ""
