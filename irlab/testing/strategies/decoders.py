"""Random small decoders: causal language models as the hf frontend lifts them, in nn ops or in primitives."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from ...ir import GraphBuilder, Module, Value
from ...ops import nn, prim
from ...types import i64
from .values import Draw


@dataclass
class _Shape:
    """What a decoder looks like; sizes are numbers of features."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    gated: bool
    layer_norm: bool
    rope: bool
    bias: bool
    tied: bool
    dtype: str
    spelled_out: bool

    @property
    def hidden(self) -> int:
        return self.heads * self.head_dim


@st.composite
def decoders(draw: Draw, width: int = 16, max_layers: int = 2) -> Module:
    """Decoders from input_ids[batch, seq] to logits[batch, seq, vocab], with random weights.

    Drawn are the number of layers and heads, grouped key/value heads, RMS or layer norms, rotary positions or none,
    gated or plain feed-forward blocks, biases, tied embeddings, f32 or bf16, and whether the ops are nn ops or
    spelled out in primitives (so that `fuse` has something to find). Rows of weight matrices
    are multiples of `width` long.
    """
    heads = draw(st.sampled_from((1, 2, 4)))
    return _Decoder(
        _Shape(
            layers=draw(st.integers(1, max_layers)),
            heads=heads,
            kv_heads=draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
            head_dim=width,
            inner=width * draw(st.integers(1, 2)),
            vocab=draw(st.integers(4, 40)),
            gated=draw(st.booleans()),
            layer_norm=draw(st.booleans()),
            rope=draw(st.booleans()),
            bias=draw(st.booleans()),
            tied=draw(st.booleans()),
            dtype=draw(st.sampled_from(("f32", "f32", "bf16"))),
            spelled_out=draw(st.booleans()),
        )
    ).module()


class _Decoder:
    """Builds one decoder layer by layer."""

    def __init__(self, shape: _Shape) -> None:
        self.shape = shape
        self.builder = GraphBuilder("decoder")
        self.seeds = iter(range(10_000))

    def module(self) -> Module:
        shape = self.shape
        ids = self.builder.input("input_ids", "i64", ("batch", "seq"))
        table = self.weight("model.embed_tokens.weight", shape.vocab, shape.hidden)
        x = nn.embedding(ids, table)
        for layer in range(shape.layers):
            prefix = f"model.layers.{layer}"
            x = prim.add(x, self.attention(self.norm(x, f"{prefix}.input_layernorm"), f"{prefix}.self_attn"))
            x = prim.add(x, self.feed_forward(self.norm(x, f"{prefix}.post_attention_layernorm"), f"{prefix}.mlp"))
        head = table if shape.tied else self.weight("lm_head.weight", shape.vocab, shape.hidden)
        self.builder.output(logits=self.meaning(nn.linear(self.norm(x, "model.norm"), head)))
        return self.builder.module()

    def weight(self, name: str, *sizes: int) -> Value:
        return self.builder.random_weight(name, self.shape.dtype, sizes, next(self.seeds))

    def meaning(self, value: Value) -> Value:
        """The value, or the primitives that it stands for."""
        if not self.shape.spelled_out or not isinstance(value.op, nn.NNOp):
            return value
        made = value.op.decompose()
        assert isinstance(made, Value)
        return made

    def linear(self, x: Value, path: str, out: int, bias: bool = False) -> Value:
        weight = self.weight(f"{path}.weight", out, int(x.type.shape[-1]))  # type: ignore[arg-type]
        return self.meaning(nn.linear(x, weight, self.weight(f"{path}.bias", out) if bias else None))

    def norm(self, x: Value, path: str) -> Value:
        weight = self.weight(f"{path}.weight", self.shape.hidden)
        if self.shape.layer_norm:
            return self.meaning(nn.layer_norm(x, weight, self.weight(f"{path}.bias", self.shape.hidden)))
        return self.meaning(nn.rms_norm(x, weight))

    def attention(self, x: Value, path: str) -> Value:
        shape = self.shape
        batch, seq = x.type.shape[:2]

        def heads(part: str, count: int) -> Value:
            y = self.linear(x, f"{path}.{part}", count * shape.head_dim, shape.bias)
            return prim.transpose(prim.reshape(y, (batch, seq, count, shape.head_dim)), (0, 2, 1, 3))

        q, k, v = heads("q_proj", shape.heads), heads("k_proj", shape.kv_heads), heads("v_proj", shape.kv_heads)
        if shape.rope:
            frequencies = self.builder.random_weight("model.rotary_emb.inv_freq", "f32", (shape.head_dim // 2,))
            positions = prim.iota(seq, i64)
            q, k = (self.meaning(nn.rope(y, positions, frequencies)) for y in (q, k))
        y = self.meaning(nn.attention(q, k, v, causal=True, scale=shape.head_dim**-0.5))
        y = prim.reshape(prim.transpose(y, (0, 2, 1, 3)), (batch, seq, shape.hidden))
        return self.linear(y, f"{path}.o_proj", shape.hidden)

    def feed_forward(self, x: Value, path: str) -> Value:
        shape = self.shape
        up = self.linear(x, f"{path}.up_proj", shape.inner, shape.bias)
        if shape.gated:
            up = prim.mul(self.meaning(nn.silu(self.linear(x, f"{path}.gate_proj", shape.inner, shape.bias))), up)
        else:
            up = self.meaning(nn.gelu(up))
        return self.linear(up, f"{path}.down_proj", shape.hidden, shape.bias)
