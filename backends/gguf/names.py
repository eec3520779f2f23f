"""What tensors are called in a GGUF file, for each part of a decoder. The names are gguf-py's."""

from __future__ import annotations

from collections.abc import Iterator

from irlab.backends.gguf.parts import Attention, Decoder, FeedForward
from irlab.ir import Value

ATTENTION_NAMES = {
    "norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "o_bias": "attn_output.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
}
FFN_NAMES = {
    "norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "gate_bias": "ffn_gate.bias",
    "up_bias": "ffn_up.bias",
    "down_bias": "ffn_down.bias",
}
EXPERT_NAMES = {
    "norm": "ffn_norm.weight",
    "router": "ffn_gate_inp.weight",
    "gate": "ffn_gate_exps.weight",
    "up": "ffn_up_exps.weight",
    "down": "ffn_down_exps.weight",
}


def _names(block: Attention | FeedForward) -> dict[str, str]:
    if isinstance(block, Attention):
        return ATTENTION_NAMES
    return EXPERT_NAMES if block.experts else FFN_NAMES


def named_weights(decoder: Decoder) -> Iterator[tuple[str, Value]]:
    """Every weight of `decoder` under its GGUF name; a tied head has none of its own."""
    yield "token_embd.weight", decoder.embedding.weight
    yield "output_norm.weight", decoder.head.norm
    if not decoder.tied:
        yield "output.weight", decoder.head.weight
    for block in decoder.blocks:
        for part, name in _names(block).items():
            value = getattr(block.match, part)
            if value is not None:
                yield f"blk.{block.layer}.{name}", value
