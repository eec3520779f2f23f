"""Which of llama.cpp's architectures computes a decoder, and what its file must say. One row each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from irlab.backends.gguf.anatomy import Decoder, Layer
from irlab.backends.gguf.rope import RopeForm

SMOLLM3_STEP = 4
"""llama.cpp's smollm3 leaves every fourth layer without rotary embedding."""


@dataclass(frozen=True)
class Architecture:
    """A row of the table. Each `refuses` gives the reason why a decoder is not of this architecture, or nothing.

    name:          `general.architecture`.
    paired_rope:   whether rotary pairs are neighbours (i, i + 1), as ggml's NORM mode has it, or halves apart (NEOX).
    rope_factors:  whether `rope_freqs.weight` is read.
    biases:        the projections whose bias is read.
    """

    name: str
    paired_rope: bool
    rope_factors: bool
    biases: frozenset[str]
    refuses: tuple[Callable[[Decoder], str], ...]


def _no_qk_norm(decoder: Decoder) -> str:
    normed = any(layer.attention.q_normed or layer.attention.k_normed for layer in decoder.layers)
    return "it has no norm on queries and keys" if normed else ""


def _qk_norm(decoder: Decoder) -> str:
    normed = all(layer.attention.q_normed and layer.attention.k_normed for layer in decoder.layers)
    return "" if normed else "it normalises queries and keys in every layer"


def _all_rope(decoder: Decoder) -> str:
    for number, layer in enumerate(decoder.layers):
        if not (layer.attention.q_roped and layer.attention.k_roped):
            return f"it turns queries and keys in every layer, and layer {number} does not"
    return ""


def _every_fourth_without_rope(decoder: Decoder) -> str:
    for number, layer in enumerate(decoder.layers):
        expected = (number + 1) % SMOLLM3_STEP != 0
        if (bool(layer.attention.q_roped), bool(layer.attention.k_roped)) != (expected, expected):
            return f"it leaves out rotary embedding in every fourth layer only, which layer {number} contradicts"
    return ""


def _all_qkv_biases(decoder: Decoder) -> str:
    # llama.cpp asks for these tensors; a model without them is no qwen2.
    for layer in decoder.layers:
        if any(getattr(layer.attention, f"{name}_bias") is None for name in "qkv"):
            return "it needs biases on queries, keys and values"
    return ""


_ATTENTION_BIASES = frozenset({"q_bias", "k_bias", "v_bias", "o_bias"})
_MLP_BIASES = frozenset({"gate_bias", "up_bias", "down_bias"})

ARCHITECTURES: tuple[Architecture, ...] = (
    # The most specific first. Read off llama.cpp's model loaders, src/models/*.cpp.
    Architecture("qwen3", False, False, frozenset(), (_qk_norm, _all_rope)),
    Architecture("smollm3", True, False, frozenset(), (_no_qk_norm, _every_fourth_without_rope)),
    Architecture(
        "qwen2", False, False, frozenset({"q_bias", "k_bias", "v_bias"}), (_no_qk_norm, _all_rope, _all_qkv_biases)
    ),
    Architecture("llama", True, True, _ATTENTION_BIASES | _MLP_BIASES, (_no_qk_norm, _all_rope)),
)


def common_refusal(decoder: Decoder) -> str:
    """Why no architecture of the table holds the decoder, or nothing."""
    if len(decoder.eps) != 1:
        return f"its norms use different epsilons {sorted(decoder.eps)}, and a file has one"
    shapes = {_shape(layer) for layer in decoder.layers}
    if len(shapes) > 1:
        return "its layers differ in heads or widths"
    for number, layer in enumerate(decoder.layers):
        if layer.mlp.activation != "silu":
            return f"layer {number}'s activation is {layer.mlp.activation}, and these architectures have silu"
        if layer.attention_op.sinks is not None:
            return f"layer {number} has attention sinks"
    if decoder.head.bias is not None:
        return "the head has a bias"
    windows = {layer.attention.window for layer in decoder.layers}
    if len(windows) > 1:
        return "only some of its layers have a sliding window"
    return ""


def _shape(layer: Layer) -> tuple[int, ...]:
    ffn = layer.mlp.gate.type.shape[0]
    return layer.n_heads, layer.n_kv_heads, layer.head_dim, layer.v_dim, int(ffn)


def lacks(architecture: Architecture, decoder: Decoder, rope: RopeForm | None) -> list[str]:
    """What `decoder` has and a model of this architecture has not: biases, a table of rotary factors."""
    reasons = []
    for number, layer in enumerate(decoder.layers):
        for match in (layer.attention, layer.mlp):
            for name in (n for n in match.names if n.endswith("_bias")):
                if getattr(match, name) is not None and name not in architecture.biases:
                    reasons.append(f"it has no {name.replace('_', ' ')}, and layer {number} does")
    if rope is not None and rope.factors and not architecture.rope_factors:
        reasons.append("it cannot hold a table of rotary factors")
    return reasons


def choose(decoder: Decoder, rope: RopeForm | None) -> tuple[Architecture | None, str]:
    """The architecture of `decoder`, or None and the reason: that of the row which came nearest."""
    reason = common_refusal(decoder)
    if reason:
        return None, reason
    tried = []
    for architecture in ARCHITECTURES:
        structure = [reason for refuse in architecture.refuses if (reason := refuse(decoder))]
        missing = lacks(architecture, decoder, rope)
        if not structure and not missing:
            return architecture, ""
        tried.append((architecture, structure, missing))
    # Of equally near ones the last: it is the more general architecture.
    nearest, structure, missing = min(reversed(tried), key=lambda t: (len(t[1]), len(t[2])))
    return None, f"nearest is '{nearest.name}', but {(structure + missing)[0]}"


def plain_scale(layer: Layer) -> float:
    """What llama.cpp multiplies attention scores with."""
    return 1.0 / math.sqrt(layer.head_dim)
