"""A decoder graph turned into what a GGUF file can say: GGUF names, rotary pairs, types, metadata.

The result is still a module that computes the same logits: the parity gate interprets it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from irlab import registry
from irlab.backends.gguf import adapter
from irlab.backends.gguf.anatomy import dissect
from irlab.backends.gguf.architectures import (
    Architecture,
    Choice,
    choose,
    common_refusal,
    first_difference,
    plain_scale,
)
from irlab.backends.gguf.blocks import fill_missing, join_qkv, missing_blocks
from irlab.backends.gguf.cache import without_codes
from irlab.backends.gguf.encoding import EncodeByGGML
from irlab.backends.gguf.ggml import GGMLType
from irlab.backends.gguf.imatrix import importances
from irlab.backends.gguf.names import named_weights
from irlab.backends.gguf.parts import Decoder
from irlab.backends.gguf.rope import RopeForm, rope_form
from irlab.backends.gguf.tokenizer import TokenizerMetadata, no_tokenizer, tokenizer_metadata
from irlab.backends.gguf.weight_types import tensor_types
from irlab.encodings import ggml
from irlab.errors import LegalityError
from irlab.expansion import decode_shared
from irlab.ir import Graph, Module, Op, Value, Weight
from irlab.low_rank import MULTIPLIED_OUT
from irlab.ops import nn, prim
from irlab.passmgr import Context
from irlab.types import f32
from irlab.weights import Affine, Array, Cast, Encode, Recipe, Take, WeightSymbol

if TYPE_CHECKING:
    from irlab.backends.gguf import GGUF

DEFAULT_CONTEXT = 2048
"""Positions that a model is said to take where its configuration does not say."""


def legalise(module: Module, options: GGUF, ctx: Context) -> Module:
    """`module`, changed in place. Its metadata gains "gguf", the file's keys, and "notes", what to tell the user."""
    registry.pass_class("cast").configure({"dtype": "f32"}).run(module, ctx)
    told = without_codes(module.graph)
    expanded = decode_shared(module.graph, f32)
    whole = adapter.multiply_out(module, ctx)
    corrected = adapter.take_off(module, ctx)
    decoder = dissect(module)
    architecture, rope, reason = architecture_of(decoder, module)
    notes = [f"written as architecture '{architecture.name}': {reason}"] if reason else []
    notes += [f"{whole} {MULTIPLIED_OUT}"] if whole else []
    notes += [expanded] if expanded else []
    notes += missing_blocks(decoder, architecture)
    _fold_scales(module.graph, decoder)
    _turn_pairs(module.graph, dissect(module), architecture)
    fill_missing(module.graph, dissect(module), architecture)
    decoder = dissect(module)
    metadata = _metadata(decoder, architecture, rope, module, notes)
    types = tensor_types(decoder, architecture, options, notes)
    weights = importances(module, options.imatrix) if options.imatrix else {}
    _rename(module.graph, decoder, types, EncodeByGGML if options.encoder == "ggml" else Encode, weights)
    if architecture.fused_qkv:
        join_qkv(module.graph, dissect(module))
    if told:
        notes.append(told)
    if corrected:
        adapter.put_back(module, "F32" if options.type == "f32" else "F16")
        notes.append(f"{corrected} low-rank corrections are in a LoRA adapter beside the file: run with --lora")
    tokenizer = _tokenizer(module, architecture, decoder.vocabulary, options.pre)
    module.metadata["gguf"] = metadata | tokenizer.metadata
    module.metadata["gguf_rope_factors"] = rope.factors if rope is not None else ()
    module.metadata["notes"] = [*module.metadata.get("notes", []), *notes, *tokenizer.notes]
    return module


def architecture_of(decoder: Decoder, module: Module) -> tuple[Architecture, RopeForm | None, str]:
    """The architecture that computes `decoder`, the form of its rotary frequencies, and why a stand-in was chosen if it
    is one. Raises LegalityError."""
    reason = common_refusal(decoder)
    rope = None if reason else _rope(decoder, module.metadata)
    architecture, reason = Choice(None, reason) if reason else choose(decoder, rope)
    if architecture is None:
        way_out = (
            "prune all layers to one width, or use --emit onnx" if first_difference(decoder) else "use --emit onnx"
        )
        raise LegalityError(f"no llama.cpp architecture computes this model: {reason}", f"{way_out}; see --plan")
    return architecture, rope, reason


def _rope(decoder: Decoder, metadata: Mapping[str, Any]) -> RopeForm | None:
    tables = [(a.layer, t) for a in decoder.attentions for t in (a.match.q_freq, a.match.k_freq) if t is not None]
    if not tables:
        return None
    values = {table: table.op.symbol.recipe.read() for _, table in tables}
    first, frequencies = tables[0][0], values[tables[0][1]]
    for layer, table in tables:
        if not np.array_equal(values[table], frequencies):
            raise LegalityError(
                f"GGUF: layers {first} and {layer} turn by different rotary frequencies, and a file has one table"
            )
    return rope_form(frequencies, _theta(metadata.get("config", {})))


def _theta(config: Mapping[str, Any]) -> float | None:
    """The rotary base of a Hugging Face configuration, in its present or its former place."""
    parameters = config.get("rope_parameters") or {}
    theta = parameters.get("rope_theta", config.get("rope_theta"))
    return float(theta) if isinstance(theta, int | float) else None


def _metadata(
    decoder: Decoder, architecture: Architecture, rope: RopeForm | None, module: Module, notes: list[str]
) -> dict[str, Any]:
    """The keys of the file, all read off the graph but for names, licence and the context length."""
    attention, name = decoder.attentions[0], architecture.name
    config = module.metadata.get("config", {})
    context = int(config.get("max_position_embeddings") or DEFAULT_CONTEXT)
    window = attention.match.window
    if 0 < window < context:
        # Within the window nothing is hidden, so that many positions are exact.
        notes.append(f"llama.cpp's {name} has no sliding window: the context is limited to the window, {window} tokens")
        context = window
    keys: dict[str, Any] = {
        "general.architecture": name,
        "general.type": "model",
        "general.name": module.name,
        "general.quantization_version": 2,
        f"{name}.context_length": context,
        f"{name}.embedding_length": decoder.hidden,
        f"{name}.block_count": len(decoder.layers),
        f"{name}.feed_forward_length": _by_layer(decoder, "feed-forward neurons"),
        f"{name}.attention.head_count": _by_layer(decoder, "heads"),
        f"{name}.attention.head_count_kv": _by_layer(decoder, "key/value heads"),
        f"{name}.attention.key_length": attention.head_dim,
        f"{name}.attention.value_length": attention.v_dim,
        f"{name}.attention.layer_norm_rms_epsilon": next(iter(decoder.eps)),
        f"{name}.vocab_size": decoder.vocabulary,
    }
    if decoder.experts:
        keys[f"{name}.expert_count"] = decoder.experts
        keys[f"{name}.expert_used_count"] = decoder.ffns[0].experts_used
        keys[f"{name}.expert_feed_forward_length"] = decoder.ffns[0].width
    if rope is not None:
        turned = next(value for a in decoder.attentions if (value := a.match.q_freq) is not None)
        keys[f"{name}.rope.dimension_count"] = 2 * int(turned.type.shape[0])
        keys[f"{name}.rope.freq_base"] = rope.base
        if rope.linear != 1.0:
            keys[f"{name}.rope.scaling.type"] = "linear"
            keys[f"{name}.rope.scaling.factor"] = rope.linear
    for key, source in (("general.license", "licence"), ("general.base_model.0.name", "base_model")):
        if isinstance(module.metadata.get(source), str):
            keys[key] = module.metadata[source]
    if "general.base_model.0.name" in keys:
        keys["general.base_model.count"] = 1
    return keys


def _by_layer(decoder: Decoder, what: str) -> int | npt.NDArray[np.int32]:
    """A width as metadata: one number, or an array where layers differ."""
    widths = [layer.widths[what] for layer in decoder.layers]
    return widths[0] if len(set(widths)) == 1 else np.array(widths, np.int32)


def _fold_scales(graph: Graph, decoder: Decoder) -> None:
    """Attention that scales its scores in another way, or turns with a factor (YaRN): folded into the queries.

    llama.cpp scales by 1 / sqrt(head_dim). Scores are linear in q, and so is rotary embedding; after a q norm, the
    norm's weight is what scales q.
    """
    for attention in decoder.attentions:
        match, op = attention.match, attention.op
        turns = (match.q_turn or 1.0) * (match.k_turn or 1.0)
        factor = op.scale * turns / plain_scale(attention)
        if abs(factor - 1) > 1e-6:
            for part in ("q_norm",) if match.q_normed else ("q", "q_bias"):
                value = getattr(match, part)
                if value is not None:
                    _change(graph, value, match.ops, partial(Affine, scale=factor))
            graph.replace(op, op.rebuild(op.operands, scale=plain_scale(attention)).result)
        for turned in (match.q_turned, match.k_turned):
            if isinstance(turned.op, nn.Rope) and turned.op.scale != 1.0:
                graph.replace(turned.op, turned.op.rebuild(turned.op.operands, scale=1.0).result)


def _turn_pairs(graph: Graph, decoder: Decoder, architecture: Architecture) -> None:
    """Reorder the rows of q and k (weights and biases) where rotary pairs lie otherwise than llama.cpp wants them."""
    for attention in decoder.attentions:
        match = attention.match
        for part, heads in (("q", attention.heads), ("k", attention.kv_heads)):
            paired = getattr(match, f"{part}_paired")
            if paired is None or paired == architecture.paired_rope:
                continue
            rotary = 2 * int(getattr(match, f"{part}_freq").type.shape[0])
            for name, count in ((part, heads), (f"{part}_bias", heads), (f"{part}_norm", 1)):
                value = getattr(match, name)
                if value is not None:
                    rows = pair_order(count, attention.head_dim, rotary, to_pairs=architecture.paired_rope)
                    _change(graph, value, match.ops, partial(Take, indices=rows))
            turn = getattr(match, f"{part}_turned").op
            graph.replace(turn, turn.rebuild(turn.operands, interleaved=architecture.paired_rope).result)


def pair_order(heads: int, head_dim: int, rotary: int, *, to_pairs: bool) -> tuple[int, ...]:
    """The row order that turns rotary halves (i, i + n) into pairs (2i, 2i + 1) in each head, or back."""
    half = rotary // 2
    if to_pairs:
        one = [row for i in range(half) for row in (i, i + half)]
    else:
        one = [*range(0, rotary, 2), *range(1, rotary, 2)]
    one += range(rotary, head_dim)
    return tuple(head * head_dim + row for head in range(heads) for row in one)


def _change(graph: Graph, value: Value, users: tuple[Op, ...], how: Callable[[Recipe], Recipe]) -> None:
    """Let the matched ops read a changed weight; other users of a shared weight keep the old one."""
    assert isinstance(value.op, Weight)
    symbol = value.op.symbol
    if set(value.uses) - set(users):
        raise LegalityError(f"GGUF: the weight {symbol.name} is shared by layers that need it in different forms")
    recipe: Recipe = how(symbol.recipe)
    if symbol.type.encoding is not None and recipe.type.encoding is None:
        raise LegalityError(
            f"GGUF: {symbol.name} must be rescaled, but its codes are fixed already",
            "emit GGUF without quantize, or exclude it",
        )
    graph.replace(value.op, prim.weight(WeightSymbol(symbol.name, recipe)))


def _rename(
    graph: Graph,
    decoder: Decoder,
    types: Mapping[str, GGMLType],
    encode: type[Encode],
    importances: Mapping[str, Recipe],
) -> None:
    """Give each weight its GGUF name and its type, as an encoding where that is not f32. `importances`: of the columns
    of some weights."""
    for name, value in list(named_weights(decoder)):
        assert isinstance(value.op, Weight)
        recipe = value.op.symbol.recipe
        if recipe.type.encoding is None and types[name].name != "F32":
            importance = importances.get(value.op.symbol.name)
            recipe = encode(_unwidened(recipe), ggml(types[name].name), importance=importance)
        graph.replace(value.op, prim.weight(WeightSymbol(name, recipe)))


def _unwidened(recipe: Recipe) -> Recipe:
    """`recipe` without a last widening to f32, which encoding does itself."""
    return recipe.source if isinstance(recipe, Cast) and recipe.source.type.encoding is None else recipe


def rope_factor_symbol(factors: tuple[float, ...]) -> WeightSymbol:
    """The tensor of rotary factors."""
    from irlab.types import f32, tensor

    values = np.array(factors, np.float32)
    return WeightSymbol("rope_freqs.weight", Array(tensor(f32, (len(factors),)), values))


def _tokenizer(module: Module, architecture: Architecture, vocabulary: int, pre: str) -> TokenizerMetadata:
    directory = module.metadata.get("tokenizer")
    if not directory or not any((Path(directory) / n).is_file() for n in ("tokenizer.json", "tokenizer.model")):
        return no_tokenizer(architecture.name, vocabulary)
    return tokenizer_metadata(Path(directory), vocabulary, pre=pre)
