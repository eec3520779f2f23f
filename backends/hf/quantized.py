"""How is a proven module with encoded matrices written in one of the layouts of quantised checkpoints?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from irlab.checkpoint import find_checkpoint
from irlab.encodings import Encoding
from irlab.errors import LegalityError
from irlab.ir import Graph, Module
from irlab.layouts import LAYOUTS, Layout, Names, Rounded, Scheme, activation_of, laid_out
from irlab.ops import nn
from irlab.passmgr import note
from irlab.target import PlanRow
from irlab.types import f32, tensor
from irlab.weight_uses import WeightUses, read_together, weight_uses
from irlab.weights import Array, Cast, Recipe, WeightSymbol, static_shape

if TYPE_CHECKING:
    from irlab.ops.nn import ActivationRounding

_OF_THE_TENSOR: Final = ("weight_scale", "weight_scale_2", "weight_global_scale")
"""Tensors that may hold one scale of a whole matrix."""


def rounding_refusal(op: ActivationRounding, layout: str) -> str:
    """Why `layout` cannot say that activations are rounded as `op` does; empty if it can."""
    activation = activation_of(op)
    if activation is None:
        return f"the {layout} layout has activations of 8 bits with 0 in the middle, FP8 and NVFP4"
    return LAYOUTS[layout].activation_refusal(activation)


def plan_rows(graph: Graph, rounded: Mapping[str, Rounded], layout: str) -> list[PlanRow]:
    """What becomes of the encoded weights of `graph`, by scheme."""
    rows: dict[tuple[str, str], int] = {}
    for name, uses in weight_uses(graph).items():
        kind = uses.symbol.type
        if kind.encoding is not None:
            scheme = _scheme(name, kind.encoding, rounded)
            reason, hint = _refusal(uses, scheme, static_shape(kind), layout)
            key = str(scheme), f"{reason}: {hint}" if hint else reason
            rows[key] = rows.get(key, 0) + 1
    return [
        PlanRow(f"{count} weights in {scheme}", "none" if reason else "native", reason or f"its codes, as {layout}")
        for (scheme, reason), count in rows.items()
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
            encoded[stem] = _scheme(ours, source.type.encoding, module.metadata["rounded"])
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
        assert source.type.encoding is not None
        scheme = _scheme(ours, source.type.encoding, module.metadata["rounded"])
        reason, hint = _refusal(uses[ours], scheme, static_shape(source.type), layout)
        if reason:
            raise LegalityError(f"hf: {name}: {reason}", hint or f"quantize{{exclude={ours}}}")


def note_differences(module: Module, names: Names) -> None:
    """Say where layers that loaders multiply as one have different schemes."""
    for group in _together(module):
        schemes = {stem: names.encoded.get(stem) for stem in group}
        if len(set(schemes.values())) > 1:
            said = " and ".join(group)
            note(
                module, f"{said} differ in how they are stored: vLLM and TensorRT-LLM join them, and load no such file"
            )
            return


def note_different_scales(module: Module, out: Path) -> None:
    """Say where layers that loaders multiply as one have different scales of the tensor, as other tools' codes may."""
    written = find_checkpoint(out)
    assert written is not None
    for group in _together(module):
        for part in _OF_THE_TENSOR:
            found = [name for name in (f"{stem}.{part}" for stem in group) if name in written]
            if len(found) > 1 and all(written.type(name).size == 1 for name in found):
                scales = {float(written.weight(name).read().astype("f4").reshape(-1)[0]) for name in found}
                if len(scales) > 1:
                    told = "vLLM and TensorRT-LLM take the largest for all, which changes the others"
                    note(module, f"{' and '.join(found)} differ: {told}; quantize gives them one")
                    return


def quantized_tensors(module: Module, layout: str) -> list[WeightSymbol]:
    """The tensors of a legalised module: those of encoded matrices in `layout`, the others as they are."""
    weights, rounded = module.weights, module.metadata["rounded"]
    found: list[WeightSymbol] = []
    for name, ours in module.metadata["tensors"].items():
        recipe = weights[ours].recipe
        source = _encoded(recipe)
        if source is None:
            found.append(WeightSymbol(name, recipe))
            continue
        assert source.type.encoding is not None
        form = LAYOUTS[layout].form(_scheme(ours, source.type.encoding, rounded))
        found += laid_out(_stem(name), source, form)
        found += _scales(_stem(name), rounded.get(ours), LAYOUTS[layout])
    return found


def _scales(stem: str, rounded: Rounded | None, layout: Layout) -> Iterator[WeightSymbol]:
    """The tensors that say how what the layer reads is scaled."""
    for part, value in layout.scale_tensors(rounded.activation, rounded.scale).items() if rounded else ():
        yield WeightSymbol(f"{stem}.{part}", Array(tensor(f32, value.shape), value))


def _together(module: Module) -> list[list[str]]:
    """The layers that read the same value, by the names of their modules: q, k and v, or gate and up."""
    stems = {ours: _stem(name) for name, ours in module.metadata["tensors"].items()}
    return [[stems[name] for name in group if name in stems] for group in read_together(module.graph)]


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


def _scheme(name: str, encoding: Encoding, rounded: Mapping[str, Rounded]) -> Scheme:
    found = rounded.get(name)
    return Scheme(encoding, None if found is None else found.activation)


def _encoded(recipe: Recipe) -> Recipe | None:
    """The encoded weight that `recipe` decodes; None for one that is plain, or that more was done to."""
    return recipe.source if isinstance(recipe, Cast) and recipe.source.type.encoding is not None else None


def _refusal(uses: WeightUses, scheme: Scheme, shape: tuple[int, ...], layout: str) -> tuple[str, str]:
    """Why `layout` cannot hold a weight, and what can; empty if it can."""
    if any(isinstance(op, nn.Embedding) for op, _ in uses.users):
        return f"the {layout} layout holds linear layers, not tables of embeddings", ""
    if len(shape) != 2:
        return f"the {layout} layout holds linear layers, not stacks of experts", ""
    reason = LAYOUTS[layout].refusal(scheme, shape)
    if not reason:
        return "", ""
    able = [name for name, other in LAYOUTS.items() if not other.refusal(scheme, shape)]
    return reason, f"layout={' or '.join(able)}" if able else "no layout holds it: another scheme"
