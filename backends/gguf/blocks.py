"""How does a file say blocks that its architecture spells otherwise: missing ones, and q, k and v as one tensor?

A block that was taken out of a layer adds nothing, and so does one of zeros. llama.cpp's deci reads layers without
attention, but not as the first one, from which it takes the size of heads; and it takes a layer without feed-forward
block (n_ff = 0) for one without attention as well. One dead head, or one dead neuron, computes the same in any place.
"""

from __future__ import annotations

import numpy as np

from irlab.backends.gguf.architectures import Architecture, plain_scale
from irlab.backends.gguf.parts import Attention, Decoder
from irlab.ir import Graph, Op, Value, Weight
from irlab.ops import nn, prim
from irlab.types import f32, tensor
from irlab.weights import Array, Concat, WeightSymbol

_DEAD = "dead."
"""What the names of zeros begin with until they have GGUF's."""


def missing_blocks(decoder: Decoder, architecture: Architecture) -> list[str]:
    """What is written in place of the blocks that layers lack, in words; a line each."""
    notes = []
    for number, layer in enumerate(decoder.layers):
        if _needs_attention(number, layer.attention, architecture):
            notes.append(f"layer {number} has no attention: written as one head of zeros")
        if layer.ffn is None:
            notes.append(f"layer {number} has no feed-forward block: written as one neuron of zeros")
    return notes


def _needs_attention(layer: int, attention: Attention | None, architecture: Architecture) -> bool:
    return attention is None and (layer == 0 or not architecture.headless)


def fill_missing(graph: Graph, decoder: Decoder, architecture: Architecture) -> None:
    """Add blocks of zeros where `architecture` needs them."""
    for number, layer in enumerate(decoder.layers):
        if layer.ffn is not None and _needs_attention(number, layer.attention, architecture):
            x = layer.ffn.match.x
            readers = list(layer.ffn.match.ops)
            _insert(graph, x, readers, _dead_attention(x, number, decoder, architecture))
        if layer.attention is not None and layer.ffn is None:
            x = layer.attention.match.root.results[0]
            _insert(graph, x, list(x.uses), _dead_ffn(x, number, decoder))


def _insert(graph: Graph, x: Value, readers: list[Op], new: Value) -> None:
    """Let `readers` read `new`, which is computed from `x`, where they read `x`."""
    for op in readers:
        for index, operand in enumerate(op.operands):
            if operand is x:
                graph.set_operand(op, index, new)


def _dead_attention(x: Value, layer: int, decoder: Decoder, architecture: Architecture) -> Value:
    """x + the attention of one head whose weights are zero."""
    other = decoder.attentions[0]
    width, hidden, match = other.head_dim, decoder.hidden, other.match
    batch, seq, _ = x.type.shape
    h = nn.rms_norm(x, _ones(layer, "attn_norm", hidden), match.eps)
    turned = []
    for name in "qkv":
        rows = prim.reshape(nn.linear(h, _zeros(layer, name, width, hidden)), (batch, seq, 1, width))
        if name != "v" and match.q_normed:
            rows = nn.rms_norm(rows, _ones(layer, f"{name}_norm", width), match.eps)
        heads = prim.transpose(rows, (0, 2, 1, 3))
        if name != "v" and match.q_roped:
            heads = nn.rope(heads, match.q_positions, match.q_freq, interleaved=architecture.paired_rope)
        turned.append(heads)
    q, k, v = turned
    y = nn.attention(q, k, v, scale=plain_scale(other), window=other.op.window)
    y = prim.reshape(prim.transpose(y, (0, 2, 1, 3)), (batch, seq, width))
    return prim.add(nn.linear(y, _zeros(layer, "o", hidden, width)), x)


def _dead_ffn(x: Value, layer: int, decoder: Decoder) -> Value:
    """x + a gated MLP of one neuron whose weights are zero."""
    hidden = decoder.hidden
    h = nn.rms_norm(x, _ones(layer, "ffn_norm", hidden), next(iter(decoder.eps)))
    gate, up = (_zeros(layer, name, 1, hidden) for name in ("gate", "up"))
    return prim.add(nn.gated_mlp(h, gate, up, _zeros(layer, "down", hidden, 1)), x)


def _zeros(layer: int, name: str, rows: int, columns: int) -> Value:
    values = np.zeros((rows, columns), np.float32)
    return prim.weight(WeightSymbol(f"{_DEAD}{layer}.{name}", Array(tensor(f32, values.shape), values)))


def _ones(layer: int, name: str, size: int) -> Value:
    return prim.weight(WeightSymbol(f"{_DEAD}{layer}.{name}", Array(tensor(f32, (size,)), np.ones(size, np.float32))))


def is_dead(value: Value) -> bool:
    """Whether a weight is of a block that was added here."""
    return isinstance(value.op, Weight) and value.op.symbol.name.startswith(_DEAD)


QKV = ("attn_q.weight", "attn_k.weight", "attn_v.weight")
"""The parts of attn_qkv.weight, in its order of rows."""


def join_qkv(graph: Graph, decoder: Decoder) -> None:
    """Make one linear of the q, k and v of each layer, whose weights have their GGUF names and one type already."""
    for attention in decoder.attentions:
        match = attention.match
        linears = [
            next(op for op in match.ops if isinstance(op, nn.Linear) and op.weight is getattr(match, n)) for n in "qkv"
        ]
        recipes = tuple(op.weight.op.symbol.recipe for op in linears if isinstance(op.weight.op, Weight))
        symbol = WeightSymbol(f"blk.{attention.layer}.attn_qkv.weight", Concat(recipes))
        sizes = tuple(op.weight.type.shape[0] for op in linears)
        pieces = prim.split(nn.linear(linears[0].x, prim.weight(symbol)), sizes, -1)
        for op, piece in zip(linears, pieces):
            graph.replace(op, piece)
