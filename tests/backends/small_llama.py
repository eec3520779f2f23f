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
    """What to vary; the attributes that mutation tests change are plain fields. Heads and widths may be given by layer,
    with 0 for a layer without attention or without feed-forward block."""

    layers: int = 2
    hidden: int = 64
    heads: int | tuple[int, ...] = 4
    kv_heads: int | tuple[int, ...] = 2
    head_dim: int | tuple[int, ...] = 16
    ffn: int | tuple[int, ...] = 96
    vocab: int = 50
    dtype: str = "f32"
    qk_norm: bool = False
    norm_last: bool = False
    """Whether queries and keys are normalised after heads and positions were exchanged, and not before."""
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
        caches: dict[int, list[Value]] = {}
        for layer in filter(self.attends, range(self.layers)):
            shape = ("batch", self.of(self.kv_heads, layer), "past", self.of(self.head_dim, layer))
            names = [f"past_key_values.{len(caches)}.{part}" for part in ("key", "value")]
            caches[layer] = [b.input(name, self.dtype, shape) for name in names]
        visible = prim.ne(prim.reshape(mask, (B, 1, 1, P + S)), prim.constant(0, i64))
        sizes = {self.of(self.head_dim, layer) for layer in range(self.layers)}
        frequencies = {size: self.frequencies(b, size // 2) for size in sorted(sizes)}
        table = self.matrix(b, "embed.weight", (self.vocab, self.hidden), encoded=self.tied)
        x = nn.embedding(ids, table)
        outputs: dict[str, Value] = {}
        for layer in range(self.layers):
            path = f"model.layers.{layer}"
            if layer in caches:
                inv_freq = frequencies[self.of(self.head_dim, layer)]
                x, present = self.attention(b, x, path, layer, caches[layer], (positions, inv_freq, visible))
                number = len(outputs) // 2
                outputs |= {f"present.{number}.{part}": value for part, value in zip(("key", "value"), present)}
            if width := self.of(self.ffn, layer):
                h = nn.rms_norm(x, self.vector(b, f"{path}.norm2", self.hidden), self.eps)
                gate, up = (self.matrix(b, f"{path}.{name}", (width, self.hidden)) for name in ("gate", "up"))
                down = self.matrix(b, f"{path}.down", (self.hidden, width))
                x = b.add(prim.add(x, nn.gated_mlp(h, gate, up, down, activation=self.activation)), path)
        x = nn.rms_norm(x, self.vector(b, "norm", self.hidden), self.eps)
        head = table if self.tied else self.matrix(b, "head", (self.vocab, self.hidden))
        b.module().graph.set_outputs({"logits": nn.linear(x, head), **outputs})
        b.module().metadata["config"] = {"max_position_embeddings": 128, "eos_token_id": 1}
        return b.module()

    @staticmethod
    def of(widths: int | tuple[int, ...], layer: int) -> int:
        return widths if isinstance(widths, int) else widths[layer]

    def attends(self, layer: int) -> bool:
        return self.of(self.heads, layer) > 0

    def attention(
        self, b: GraphBuilder, x: Value, path: str, layer: int, past: list[Value], context: tuple[Value, Value, Value]
    ) -> tuple[Value, tuple[Value, Value]]:
        """x after the attention of a layer, and its cache."""
        positions, inv_freq, visible = context
        heads, kv_heads, size = (self.of(n, layer) for n in (self.heads, self.kv_heads, self.head_dim))
        h = b.add(nn.rms_norm(x, self.vector(b, f"{path}.norm1", self.hidden), self.eps), path)
        q = self.project(b, h, f"{path}.q", (heads, size), norm=self.qk_norm)
        k = self.project(b, h, f"{path}.k", (kv_heads, size), norm=self.qk_norm)
        v = self.project(b, h, f"{path}.v", (kv_heads, size))
        if self.rope:
            q, k = (nn.rope(t, positions, inv_freq) for t in (q, k))
        keys, values = nn.kv_update(past[0], k), nn.kv_update(past[1], v)
        scale = self.scale * self.gain
        y = nn.attention(q, keys, values, visible, scale=scale, window=self.window, softcap=self.softcap)
        y = prim.reshape(prim.transpose(y, (0, 2, 1, 3)), (B, S, heads * size))
        x = b.add(prim.add(x, nn.linear(y, self.matrix(b, f"{path}.o", (self.hidden, heads * size)))), path)
        return x, (keys, values)

    def project(self, b: GraphBuilder, x: Value, name: str, heads: tuple[int, int], norm: bool = False) -> Value:
        """x as heads: their number and their size are given."""
        size, width = heads[1], heads[0] * heads[1]
        bias = b.random_weight(f"{name}.bias", self.dtype, (width,), seed=len(name)) if self.bias else None
        flat = b.add(nn.linear(x, self.matrix(b, name, (width, self.hidden)), bias), name)
        split = prim.reshape(flat, (B, S, *heads))
        if norm and not self.norm_last:
            split = nn.rms_norm(split, self.vector(b, f"{name}_norm", size), self.eps)
        turned = prim.transpose(split, (0, 2, 1, 3))
        if norm and self.norm_last:
            turned = nn.rms_norm(turned, self.vector(b, f"{name}_norm", size), self.eps)
        return turned

    def frequencies(self, b: GraphBuilder, n: int) -> Value:
        values = tuple(100.0 ** (-i / n) for i in range(n))
        return b.weight(WeightSymbol(f"inv_freq{n}", Literal(tensor("f32", (n,)), values)))

    def matrix(self, b: GraphBuilder, name: str, shape: tuple[int, int], encoded: bool = True) -> Value:
        recipe = Random(tensor("f32" if self.encoding and encoded else self.dtype, shape), sum(name.encode()))
        if self.encoding is not None and encoded:
            return b.weight(WeightSymbol(name, Encode(recipe, self.encoding)))
        return b.weight(WeightSymbol(name, recipe))

    def vector(self, b: GraphBuilder, name: str, size: int) -> Value:
        numbers = tuple(1.0 + 0.1 * ((i * 7 + len(name)) % 11) for i in range(size))
        return b.weight(WeightSymbol(name, Literal(tensor(self.dtype, (size,)), numbers)))
