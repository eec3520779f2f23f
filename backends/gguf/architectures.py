"""Which of llama.cpp's architectures computes a decoder, and what its file must say. One row each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from irlab.backends.gguf.parts import Attention, Decoder
from irlab.backends.gguf.rope import RopeForm

SMOLLM3_STEP = 4
"""llama.cpp's smollm3 leaves every fourth layer without rotary embedding."""


@dataclass(frozen=True)
class Architecture:
    """A row of the table. Each of `refuses` gives the reason why a decoder is not of this architecture, or nothing.

    name:          `general.architecture`.
    paired_rope:   whether rotary pairs are neighbours (i, i + 1), as ggml's NORM mode has it, or halves apart (NEOX).
    rope_factors:  whether `rope_freqs.weight` is read.
    biases:        the projections whose bias is read.
    per_layer:     whether layers may differ in heads and widths. Such a row stands in for the architecture that a
                   model had before it was pruned.
    headless:      whether layers but the first may be without attention.
    fused_qkv:     whether q, k and v are one tensor.
    experts:       whether the feed-forward blocks are mixtures of experts.
    """

    name: str
    paired_rope: bool
    rope_factors: bool
    biases: frozenset[str]
    refuses: tuple[Callable[[Decoder], str], ...]
    per_layer: bool = False
    headless: bool = False
    fused_qkv: bool = False
    experts: bool = False


class Choice(NamedTuple):
    """The architecture of a decoder, or None. `reason` is why none holds it, or why a stand-in is taken."""

    architecture: Architecture | None
    reason: str


def _no_qk_norm(decoder: Decoder) -> str:
    normed = any(attention.match.q_normed or attention.match.k_normed for attention in decoder.attentions)
    return "it has no norm on queries and keys" if normed else ""


def _qk_norm(decoder: Decoder) -> str:
    normed = all(attention.match.q_normed and attention.match.k_normed for attention in decoder.attentions)
    return "" if normed else "it normalises queries and keys in every layer"


def _all_rope(decoder: Decoder) -> str:
    for attention in decoder.attentions:
        if not (attention.match.q_roped and attention.match.k_roped):
            return f"it turns queries and keys in every layer, and layer {attention.layer} does not"
    return ""


def _whole_rope(decoder: Decoder) -> str:
    for attention in decoder.attentions:
        table = attention.match.q_freq
        if table is not None and 2 * int(table.type.shape[0]) != attention.head_dim:
            return f"it turns whole heads, and layer {attention.layer} a part of them"
    return ""


def _every_fourth_without_rope(decoder: Decoder) -> str:
    if len(decoder.layers) < SMOLLM3_STEP:
        return "it leaves out rotary embedding in every fourth layer, and there is none"
    for attention in decoder.attentions:
        expected = (attention.layer + 1) % SMOLLM3_STEP != 0
        if (bool(attention.match.q_roped), bool(attention.match.k_roped)) != (expected, expected):
            return (
                f"it leaves out rotary embedding in every fourth layer only, which layer {attention.layer} contradicts"
            )
    return ""


def _all_qkv_biases(decoder: Decoder) -> str:
    # llama.cpp asks for these tensors; a model without them is no qwen2.
    for attention in decoder.attentions:
        if any(getattr(attention.match, f"{name}_bias") is None for name in "qkv"):
            return "it needs biases on queries, keys and values"
    return ""


def _square_queries(decoder: Decoder) -> str:
    for attention in decoder.attentions:
        if attention.heads * attention.head_dim != decoder.hidden:
            return f"its queries are as wide as the model, and layer {attention.layer}'s are not"
    return ""


def _tied(decoder: Decoder) -> str:
    return "" if decoder.tied else "its head is the embedding table, and this head has weights of its own"


def _alike(decoder: Decoder) -> str:
    difference = first_difference(decoder)
    return f"all its layers are alike, and {difference}" if difference else ""


def _shares_of_experts(decoder: Decoder) -> str:
    plain = next((ffn for ffn in decoder.ffns if ffn.experts and not ffn.match.normalise), None)
    return f"it divides the scores of experts by their sum, and layer {plain.layer} does not" if plain else ""


def first_difference(decoder: Decoder) -> str:
    """The first layer whose heads or widths are not those of layer 0, in words; nothing if all are alike."""
    first = decoder.layers[0].widths
    for number, layer in enumerate(decoder.layers):
        for what, width in layer.widths.items():
            if width != first[what]:
                return f"layer {number} has {width} {what} where layer 0 has {first[what]}"
    return ""


_ATTENTION_BIASES = frozenset({"q_bias", "k_bias", "v_bias", "o_bias"})
_QKV_BIASES = frozenset({"q_bias", "k_bias", "v_bias"})
_FFN_BIASES = frozenset({"gate_bias", "up_bias", "down_bias"})

ARCHITECTURES: tuple[Architecture, ...] = (
    # The most specific first, stand-ins last. Read off llama.cpp's model loaders, src/models/*.cpp.
    Architecture(
        "qwen3moe", False, False, frozenset(), (_alike, _qk_norm, _all_rope, _shares_of_experts), experts=True
    ),
    Architecture("qwen3", False, False, frozenset(), (_alike, _qk_norm, _all_rope)),
    Architecture("smollm3", True, False, frozenset(), (_alike, _no_qk_norm, _every_fourth_without_rope)),
    # Mixtral.
    Architecture(
        "llama", True, True, _ATTENTION_BIASES, (_alike, _no_qk_norm, _all_rope, _shares_of_experts), experts=True
    ),
    Architecture(
        "qwen2", False, False, _QKV_BIASES, (_alike, _square_queries, _no_qk_norm, _all_rope, _all_qkv_biases)
    ),
    Architecture("llama", True, True, _ATTENTION_BIASES | _FFN_BIASES, (_alike, _no_qk_norm, _all_rope)),
    Architecture(
        "deci",
        True,
        True,
        _ATTENTION_BIASES | _FFN_BIASES,
        (_no_qk_norm, _all_rope, _whole_rope),
        per_layer=True,
        headless=True,
    ),
    Architecture("openelm", False, False, frozenset(), (_qk_norm, _all_rope, _tied), per_layer=True, fused_qkv=True),
)


def common_refusal(decoder: Decoder) -> str:
    """Why no architecture of the table holds the decoder, or nothing."""
    if not decoder.attentions:
        return "none of its layers attends"
    if len(decoder.eps) != 1:
        return f"its norms use different epsilons {sorted(decoder.eps)}, and a file has one"
    first = decoder.attentions[0]
    for attention in decoder.attentions:
        if attention.v_dim != attention.head_dim:
            return (
                f"layer {attention.layer}'s values have {attention.v_dim} features to a head, and its keys "
                f"{attention.head_dim}"
            )
        if attention.head_dim != first.head_dim:
            return (
                f"layer {attention.layer}'s heads have {attention.head_dim} features and layer {first.layer}'s "
                f"{first.head_dim}, and a file has one size of heads"
            )
        if attention.op.sinks is not None:
            return f"layer {attention.layer} has attention sinks"
    for ffn in decoder.ffns:
        if ffn.match.activation != "silu":
            return f"layer {ffn.layer}'s activation is {ffn.match.activation}, and these architectures have silu"
    if decoder.head.bias is not None:
        return "the head has a bias"
    if len({attention.match.window for attention in decoder.attentions}) > 1:
        return "only some of its layers have a sliding window"
    return ""


def lacks(architecture: Architecture, decoder: Decoder, rope: RopeForm | None) -> list[str]:
    """What `decoder` has and a model of this architecture has not: biases, a table of rotary factors."""
    reasons = []
    for block in decoder.blocks:
        for name in (n for n in block.match.names if n.endswith("_bias")):
            if getattr(block.match, name) is not None and name not in architecture.biases:
                reasons.append(f"it has no {name.replace('_', ' ')}, and layer {block.layer} does")
    if rope is not None and rope.factors and not architecture.rope_factors:
        reasons.append("it cannot hold a table of rotary factors")
    return reasons


def choose(decoder: Decoder, rope: RopeForm | None) -> Choice:
    """The first architecture that holds `decoder`, which has no common refusal; or the reason of the row that came
    nearest."""
    tried = []
    for architecture in ARCHITECTURES:
        if architecture.experts != bool(decoder.experts):
            continue
        structure = [reason for refuse in architecture.refuses if (reason := refuse(decoder))]
        missing = lacks(architecture, decoder, rope)
        if not structure and not missing:
            return Choice(architecture, first_difference(decoder) if architecture.per_layer else "")
        tried.append((architecture, structure, missing))
    difference = first_difference(decoder)
    candidates = [row for row in tried if row[0].per_layer == bool(difference)] or tried
    # Of equally near ones the last: it is the more general architecture.
    nearest, structure, missing = min(reversed(candidates), key=lambda t: (len(t[1]), len(t[2])))
    reason = f"nearest is '{nearest.name}', but {(structure + missing)[0]}"
    return Choice(None, f"{difference}; of those that allow this, {reason}" if nearest.per_layer else reason)


def plain_scale(attention: Attention) -> float:
    """What llama.cpp multiplies attention scores with."""
    return 1.0 / math.sqrt(attention.head_dim)
