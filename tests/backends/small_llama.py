"""Small random decoders in the form that the fuse and kv-cache passes leave, built by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from irlab import GraphBuilder, dims
from irlab.ir import Module, Value
from irlab.ops import nn, prim
from irlab.types import i64, tensor
from irlab.weights import Encode, Literal, Random, WeightSymbol

B, S, P = (dims.symbol(name) for name in ("batch", "seq", "past"))


@dataclass
class Llama:
    """What to vary; the attributes that mutation tests change are plain fields."""

    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    ffn: int = 96
    vocab: int = 50
    dtype: str = "f32"
    qk_norm: bool = False
    bias: bool = False
    tied: bool = False
    encoding: Any = None
    eps: float = 1e-5
    activation: str = "silu"
    rope: bool = True
    scale: float = 0.25
    window: int = 0
    softcap: float = 0.0
    gain: float = 8.0
    """Random weights are small; scores this much larger make attention and rope matter."""

    def module(self) -> Module:
        b = GraphBuilder("llama")
        ids = b.input("input_ids", "i64", ("batch", "seq"))
        mask = b.input("attention_mask", "i64", ("batch", "past + seq"))
        positions = b.input("position_ids", "i64", ("batch", "seq"))
        shape = ("batch", self.kv_heads, "past", self.head_dim)
        caches = [
            [b.input(f"past_key_values.{layer}.{part}", self.dtype, shape) for part in ("key", "value")]
            for layer in range(self.layers)
        ]
        visible = prim.ne(prim.reshape(mask, (B, 1, 1, P + S)), prim.constant(0, i64))
        n = self.head_dim // 2
        inv_freq = b.weight(
            WeightSymbol("inv_freq", Literal(tensor("f32", (n,)), tuple(100.0 ** (-i / n) for i in range(n))))
        )
        table = self.matrix(b, "embed.weight", (self.vocab, self.hidden), encoded=self.tied)
        x = nn.embedding(ids, table)
        outputs: dict[str, Value] = {}
        for layer, (past_k, past_v) in enumerate(caches):
            path = f"model.layers.{layer}"
            h = b.add(nn.rms_norm(x, self.vector(b, f"{path}.norm1", self.hidden), self.eps), path)
            q = self.project(b, h, f"{path}.q", self.heads)
            k, v = (self.project(b, h, f"{path}.{name}", self.kv_heads) for name in ("k", "v"))
            if self.qk_norm:
                q, k = (
                    nn.rms_norm(t, self.vector(b, f"{path}.{name}_norm", self.head_dim), self.eps)
                    for t, name in ((q, "q"), (k, "k"))
                )
            if self.rope:
                q, k = (nn.rope(t, positions, inv_freq) for t in (q, k))
            keys, values = nn.kv_update(past_k, k), nn.kv_update(past_v, v)
            outputs[f"present.{layer}.key"], outputs[f"present.{layer}.value"] = keys, values
            scale = self.scale * self.gain
            y = nn.attention(q, keys, values, visible, scale=scale, window=self.window, softcap=self.softcap)
            y = prim.reshape(prim.transpose(y, (0, 2, 1, 3)), (B, S, self.heads * self.head_dim))
            x = prim.add(x, nn.linear(y, self.matrix(b, f"{path}.o", (self.hidden, self.heads * self.head_dim))))
            h = nn.rms_norm(x, self.vector(b, f"{path}.norm2", self.hidden), self.eps)
            gate, up = (self.matrix(b, f"{path}.{name}", (self.ffn, self.hidden)) for name in ("gate", "up"))
            down = self.matrix(b, f"{path}.down", (self.hidden, self.ffn))
            x = b.add(prim.add(x, nn.gated_mlp(h, gate, up, down, activation=self.activation)), path)
        x = nn.rms_norm(x, self.vector(b, "norm", self.hidden), self.eps)
        head = table if self.tied else self.matrix(b, "head", (self.vocab, self.hidden))
        b.module().graph.set_outputs({"logits": nn.linear(x, head), **outputs})
        b.module().metadata["config"] = {"max_position_embeddings": 128, "eos_token_id": 1}
        return b.module()

    def project(self, b: GraphBuilder, x: Value, name: str, heads: int) -> Value:
        width = heads * self.head_dim
        bias = b.random_weight(f"{name}.bias", self.dtype, (width,), seed=len(name)) if self.bias else None
        flat = b.add(nn.linear(x, self.matrix(b, name, (width, self.hidden)), bias), name)
        return prim.transpose(prim.reshape(flat, (B, S, heads, self.head_dim)), (0, 2, 1, 3))

    def matrix(self, b: GraphBuilder, name: str, shape: tuple[int, int], encoded: bool = True) -> Value:
        recipe = Random(tensor("f32" if self.encoding and encoded else self.dtype, shape), sum(name.encode()))
        if self.encoding is not None and encoded:
            return b.weight(WeightSymbol(name, Encode(recipe, self.encoding)))
        return b.weight(WeightSymbol(name, recipe))

    def vector(self, b: GraphBuilder, name: str, size: int) -> Value:
        numbers = tuple(1.0 + 0.1 * ((i * 7 + len(name)) % 11) for i in range(size))
        return b.weight(WeightSymbol(name, Literal(tensor(self.dtype, (size,)), numbers)))
