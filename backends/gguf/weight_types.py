"""Which GGML type does each weight of a decoder get? That of the codes it has, or that of the file type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from irlab.backends.gguf.anatomy import dissect
from irlab.backends.gguf.architectures import Architecture
from irlab.backends.gguf.blocks import QKV, is_dead
from irlab.backends.gguf.encoding import exact
from irlab.backends.gguf.ggml import GGMLType, ggml_type
from irlab.backends.gguf.mixes import FileType, ModelShape, TypePlan, file_type, plan_types
from irlab.backends.gguf.names import named_weights
from irlab.backends.gguf.parts import Decoder
from irlab.encodings import Encoding, ggml
from irlab.errors import InputError, LegalityError
from irlab.ir import Module, Value, Weight
from irlab.weights import Affine, Cast, Concat, Reshape, Take, WeightSymbol, static_shape

if TYPE_CHECKING:
    from irlab.backends.gguf import GGUF


def tensor_types(decoder: Decoder, architecture: Architecture, options: GGUF, notes: list[str]) -> dict[str, GGMLType]:
    """The GGML type of each tensor by GGUF name."""
    weights = dict(named_weights(decoder))
    fixed = {name: held for name, value in weights.items() if (held := _held(name, value)) is not None}
    target, calibrated = options.file_type(decoder), bool(options.imatrix)
    plan, types = _planned(weights, decoder, architecture, target, fixed, options.allow_fallback, calibrated)
    notes.extend(str(fallback) for fallback in plan.fallbacks)
    return types


def mixed_encodings(module: Module, mix: str, calibrated: bool, allow_fallback: bool) -> dict[str, Encoding]:
    """The encodings that the file type `mix` (q4_k_m) gives the matrices of `module`, by the names they have there: for
    passes that choose codes themselves. Registered as "gguf" under the entry-point group `irlab.mixes`.

    calibrated: whether importances are known, as llama.cpp's rules ask. allow_fallback: take a larger type where rows
    are not whole blocks, instead of refusing. Raises UsageError for an unknown mix, LegalityError for a graph that is
    no decoder of llama.cpp's.
    """
    from irlab.backends.gguf.legalise import architecture_of

    decoder = dissect(module)
    architecture, *_ = architecture_of(decoder, module)
    weights = dict(named_weights(decoder))
    plan, types = _planned(weights, decoder, architecture, file_type(mix), {}, True, calibrated)
    if plan.fallbacks and not allow_fallback:
        hint = "indivisible=fallback accepts that; q8_0, q4_0 and iq4_nl have blocks of 32"
        raise InputError(f"{plan.file_type.name} does not fit this model: {plan.fallbacks[0]}", hint)
    return {
        value.op.symbol.name: ggml(types[name].name)  # type: ignore[union-attr]
        for name, value in weights.items()
        if types[name].quantized
    }


def _held(name: str, value: Value) -> GGMLType | None:
    """The type that a weight must have: that of its codes. None where the file type decides."""
    encoding = value.type.encoding
    if encoding is None:
        return ggml_type("F32") if is_dead(value) else None  # dead blocks are too narrow
    held = exact(encoding, static_shape(value.type)[-1])
    if held is None:
        raise LegalityError(
            f"GGUF has no type for the codes of {name}, {encoding}",
            "use symmetric int4, int5 or int8 with f16 scales, mxfp4 or a GGML type (scheme=q4_k), or leave "
            "quantising to gguf{type=...}",
        )
    return held.type


def _planned(
    weights: Mapping[str, Value],
    decoder: Decoder,
    architecture: Architecture,
    target: FileType,
    fixed: dict[str, GGMLType],
    allow_fallback: bool,
    calibrated: bool = False,
) -> tuple[TypePlan, dict[str, GGMLType]]:
    """What the file type `target` makes of `weights`, where they are not `fixed`, and the type of each."""
    shapes = {name: static_shape(value.type) for name, value in weights.items()}
    joined = _joined_qkv(shapes, fixed) if architecture.fused_qkv else {}
    first = decoder.attentions[0]
    shape = ModelShape(architecture.name, len(decoder.layers), first.heads, first.kv_heads, decoder.experts)
    plan = plan_types(target, shapes, shape, imatrix=calibrated, overrides=fixed, allow_fallback=allow_fallback)
    return plan, plan.types | {part: plan.types[whole] for part, whole in joined.items()}


def _joined_qkv(shapes: dict[str, tuple[int, ...]], fixed: dict[str, GGMLType]) -> dict[str, str]:
    """Let one tensor stand for q, k and v in `shapes` and `fixed`; the names of the parts, with that of the whole."""
    joined: dict[str, str] = {}
    for name in [name for name in shapes if name.endswith(QKV[0])]:
        whole = name.removesuffix(QKV[0]) + "attn_qkv.weight"
        parts = [name.removesuffix(QKV[0]) + part for part in QKV]
        types = {fixed.pop(part, None) for part in parts}
        if len(types) > 1:
            raise LegalityError(
                f"GGUF: {', '.join(parts)} are one tensor in this architecture, and were encoded differently",
                "give them one scheme",
            )
        rows = [shapes.pop(part) for part in parts]
        shapes[whole] = (sum(row[0] for row in rows), *rows[0][1:])
        if (type_ := types.pop()) is not None:
            fixed[whole] = type_
        joined |= dict.fromkeys(parts, whole)
    return joined


def stored_float(symbol: WeightSymbol) -> str:
    """The float type a weight is stored in before the graph was cast to f32."""
    recipe = symbol.recipe
    while isinstance(recipe, Cast | Take | Affine | Reshape | Concat):
        recipe = recipe.sources[0] if isinstance(recipe, Concat) else recipe.source
    return recipe.type.dtype.name


def default_file_type(decoder: Decoder) -> FileType:
    """The type that changes nothing: that of the largest float matrix (norms are f32 in every file)."""
    floats = [v for _, v in named_weights(decoder) if v.type.encoding is None and v.type.rank >= 2]
    if not floats:
        return file_type("f16")
    largest = max(floats, key=lambda v: int(v.type.size))  # type: ignore[arg-type]
    assert isinstance(largest.op, Weight)
    return file_type(stored_float(largest.op.symbol))
