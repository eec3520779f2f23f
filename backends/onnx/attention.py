"""How does nn.attention become the attention ops of ONNX? With the layout, rope and cache around it taken along.

    transpose(reshape(linear)) -> rope -> kv_update -> attention -> transpose -> reshape

becomes one op on flat tensors: GroupQueryAttention where the provider has it and its limits allow, else Attention of
opset 23 with RotaryEmbedding before it. What no op can say stays nn.attention and is decomposed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from irlab.backends.onnx.dialect import (
    cached_attention,
    flat_attention,
    flat_rope,
    group_query_attention,
    join_heads,
    split_heads,
)
from irlab.backends.onnx.rope_table import RopeTable
from irlab.backends.onnx.vocabulary import Vocabulary
from irlab.dims import Size
from irlab.ir import Graph, Value, Weight
from irlab.ops import nn, prim
from irlab.types import bool_, f32, i64, tensor
from irlab.weights import WeightSymbol

_SWAP: Final = (0, 2, 1, 3)
_HEAD_SIZE_UNIT: Final = 16
"""GroupQueryAttention on CPU refuses head sizes that are no multiple of it."""
_ROTARY_UNIT: Final = 8
"""... and cos tables whose width is no multiple of this."""


@dataclass
class AttentionRewriter:
    """Rewrites the attentions of one graph. `max_length` bounds the rope tables; 0: none are stored."""

    graph: Graph
    vocabulary: Vocabulary
    max_length: int = 0
    _angles: dict[tuple[object, ...], tuple[Value, Value]] = field(default_factory=dict)
    _masks: dict[tuple[object, ...], Value] = field(default_factory=dict)

    def run(self) -> int:
        """Rewrite every attention that ONNX can say; returns how many."""
        return sum(self._rewrite(op) for op in self.graph.find(nn.Attention))

    def _rewrite(self, op: nn.Attention) -> bool:
        heads, kv_heads = op.q.type.shape[1], op.k.type.shape[1]
        if not isinstance(heads, int) or not isinstance(kv_heads, int) or not isinstance(op.q.type.shape[3], int):
            return False
        keys, values = op.k.op, op.v.op
        cached = _appends(keys) and _appends(values)
        if self.vocabulary.has("ms:GroupQueryAttention") and self._group_query(op, heads, kv_heads):
            return True
        if op.sinks is not None or not self.vocabulary.has("Attention"):
            return False
        total, seq = op.k.type.shape[2], op.q.type.shape[2]
        # With a cache ONNX's triangle starts after the past; without one only equal lengths line up.
        triangle = op.causal and (cached or total == seq)
        mask = self._mask(op, seq, total, causal=op.causal and not triangle)
        q = self._flat(op.q)
        if cached:
            assert isinstance(keys, nn.KVUpdate) and isinstance(values, nn.KVUpdate)
            results = cached_attention(
                q, self._flat(keys.new), self._flat(values.new), keys.cache, values.cache, mask,
                heads, kv_heads, op.scale, triangle, op.softcap,
            )  # fmt: skip
            self._replace_cached(op, keys, values, results)
        else:
            k, v = self._flat(op.k), self._flat(op.v)
            self._replace(op, flat_attention(q, k, v, mask, heads, kv_heads, op.scale, triangle, op.softcap))
        return True

    # GroupQueryAttention

    def _group_query(self, op: nn.Attention, heads: int, kv_heads: int) -> bool:
        keys, values = _cache(op.k), _cache(op.v)
        if keys is None or values is None or keys.bits != values.bits:
            return False
        if keys.bits and self.vocabulary.provider.table != "cpu":
            return False  # whether others have kernels for codes was not seen
        padding = _padding_mask(op.mask)
        size = op.q.type.shape[3]
        if padding is None or not op.causal or not isinstance(size, int) or size % _HEAD_SIZE_UNIT:
            return False
        if op.v.type.shape[3] != size or padding not in self.graph.inputs:
            return False
        rope = self._shared_rope(op.q, keys.new) if self.vocabulary.provider.rope == "attention" else None
        q, k = (op.q, keys.new) if rope is None else (_rope_input(op.q), _rope_input(keys.new))
        flat = [self._flat(q), self._flat(k), self._flat(values.new)]
        packed = _packed(flat)
        positions = None if rope is None else self._positions(rope, op.q)
        results = group_query_attention(
            packed or flat[0],
            None if packed else flat[1],
            None if packed else flat[2],
            keys.update.cache,
            values.update.cache,
            padding,
            positions,
            None if rope is None else rope.inv_freq,
            op.sinks,
            keys.scale,
            values.scale,
            heads,
            kv_heads,
            op.scale,
            op.softcap,
            op.window,
            rope is not None and rope.interleaved,
            1.0 if rope is None else rope.scale,
            self.max_length if rope is not None else 0,
            keys.bits,
        )
        self._replace_cached(op, keys.update, values.update, results)
        return True

    def _shared_rope(self, q: Value, k: Value) -> nn.Rope | None:
        """The rope of q, if k has the same one and a table of it can be stored."""
        a, b = q.op, k.op
        if not isinstance(a, nn.Rope) or not isinstance(b, nn.Rope) or not self.max_length:
            return None
        if (a.positions, a.inv_freq, a.interleaved, a.scale) != (b.positions, b.inv_freq, b.interleaved, b.scale):
            return None
        n = a.inv_freq.type.shape[0]
        whole = isinstance(n, int) and n * 2 == q.type.shape[3] and n % _ROTARY_UNIT == 0
        return a if whole and isinstance(a.inv_freq.op, Weight) else None

    def _positions(self, rope: nn.Rope, like: Value) -> Value:
        """The positions as i64[batch, seq]."""
        batch, _, seq, _ = like.type.shape
        if rope.positions.type.shape == (batch, seq):
            return rope.positions
        key = ("positions", rope.positions, batch)
        if key not in self._masks:
            row = rope.positions if rope.positions.type.rank == 2 else prim.reshape(rope.positions, (1, seq))
            self._masks[key] = prim.expand(row, (batch, seq))
        return self._masks[key]

    # Layout

    def _flat(self, x: Value) -> Value:
        """[batch, heads, seq, head_dim] as flat[batch, seq, heads * head_dim], without a transpose where it has one."""
        if isinstance(x.op, nn.Rope):
            cos, sin = self._cos_sin(x.op)
            heads = x.type.shape[1]
            assert isinstance(heads, int)
            return flat_rope(self._flat(x.op.x), cos, sin, heads, x.op.interleaved)
        swapped = _swapped(x)
        if swapped is None:
            return join_heads(x)
        batch, seq, heads_, width = swapped.type.shape
        shape = (batch, seq, heads_ * width)
        if isinstance(swapped.op, prim.Reshape) and swapped.op.x.type.shape == shape:
            return swapped.op.x
        return prim.reshape(swapped, shape)

    def _cos_sin(self, rope: nn.Rope) -> tuple[Value, Value]:
        """cos and sin of the angles, [batch, seq, n] in the dtype of what they turn; computed once for all layers."""
        dtype = rope.x.type.dtype
        key = (rope.positions, rope.inv_freq, rope.scale, dtype, rope.x.type.shape[0])
        if key not in self._angles:
            positions = self._positions(rope, rope.x)
            self._angles[key] = self._looked_up(rope, positions) or _computed(rope, positions)
        return self._angles[key]

    def _looked_up(self, rope: nn.Rope, positions: Value) -> tuple[Value, Value] | None:
        """cos and sin as rows of stored tables, for providers that would rather gather than compute them."""
        inv_freq, dtype = rope.inv_freq.op, rope.x.type.dtype
        if self.vocabulary.provider.rope != "table" or not self.max_length or not isinstance(inv_freq, Weight):
            return None
        kind = tensor(dtype, (self.max_length, *inv_freq.symbol.type.shape))
        cos, sin = (
            prim.weight(WeightSymbol(f"{inv_freq.symbol.name}.{name}_table.{dtype}", table))
            for name in ("cos", "sin")
            for table in [RopeTable(kind, inv_freq.symbol.recipe, name, rope.scale)]
        )
        return prim.gather(cos, positions, 0), prim.gather(sin, positions, 0)

    # Masks

    def _mask(self, op: nn.Attention, seq: Size, total: Size, causal: bool) -> Value | None:
        """Everything that hides scores, except ONNX's own triangle, as [batch or 1, heads or 1, seq, total]."""
        key = ("mask", op.mask, op.window, causal, seq, total)
        if key not in self._masks:
            mask = self._build_mask(op, seq, total, causal)
            if mask is None:
                return None
            self._masks[key] = mask
        return self._masks[key]

    def _build_mask(self, op: nn.Attention, seq: Size, total: Size, causal: bool) -> Value | None:
        mask = op.mask
        if mask is not None:
            lead = (1,) * (4 - mask.type.rank) + mask.type.shape[:-2] if mask.type.rank >= 2 else (1, 1)
            shape = (*lead, seq, total)
            if mask.type.rank < 4:
                rows = mask.type.shape[-2] if mask.type.rank >= 2 else 1
                mask = prim.reshape(mask, (*lead, rows, mask.type.shape[-1]))
            mask = mask if mask.type.shape == shape else prim.expand(mask, shape)
        visible = _near(seq, total, op.window, causal)
        if visible is None:
            return mask
        if mask is None or mask.type.dtype is bool_:
            return visible if mask is None else prim.and_(mask, visible)
        return prim.where(visible, mask, prim.constant(float("-inf"), mask.type.dtype))

    # Replacing

    def _replace_cached(
        self, op: nn.Attention, keys: nn.KVUpdate, values: nn.KVUpdate, results: tuple[Value, ...]
    ) -> None:
        y, present_k, present_v = results
        self._replace(op, y)
        for update, present in ((keys, present_k), (values, present_v)):
            if update.graph is not None:
                self.graph.replace(update, present, made_by="onnx-attention")

    def _replace(self, op: nn.Attention, y: Value) -> None:
        """Let the readers of the attention read `y`, which is flat: most of them flatten it themselves."""
        heads = op.q.type.shape[1]
        for turned in [u for u in op.result.uses if isinstance(u, prim.Transpose) and u.perm == _SWAP]:
            for flat in [u for u in turned.result.uses if isinstance(u, prim.Reshape) and u.shape == y.type.shape]:
                self.graph.replace(flat, y, made_by="onnx-attention")
        if op.graph is not None:
            self.graph.replace(op, split_heads(y, heads), made_by="onnx-attention")


def _computed(rope: nn.Rope, positions: Value) -> tuple[Value, Value]:
    """cos and sin of position times frequency, computed in f32."""
    batch, seq = positions.type.shape
    dtype = rope.x.type.dtype
    column = prim.reshape(prim.cast(positions, f32), (batch, seq, 1))
    angles = prim.mul(column, prim.reshape(rope.inv_freq, (1, 1, rope.inv_freq.type.shape[0])))
    both = []
    for value in (prim.cos(angles), prim.sin(angles)):
        scaled = value if rope.scale == 1.0 else prim.mul(value, prim.constant(rope.scale, f32))
        both.append(scaled if dtype is f32 else prim.cast(scaled, dtype))
    return both[0], both[1]


def _appends(op: object) -> bool:
    return isinstance(op, nn.KVUpdate) and op.pos is None


@dataclass(frozen=True)
class _Cache:
    """The keys or values of an attention: what is appended, as floats, and the scale under which `bits` of it are kept
    (None and 0: as floats)."""

    update: nn.KVUpdate
    new: Value
    scale: Value | None = None
    bits: int = 0


def _cache(read: Value) -> _Cache | None:
    """The growing cache behind what an attention reads, if it is one."""
    op = read.op
    if isinstance(op, nn.KVUpdate) and op.pos is None:
        return _Cache(op, op.new)
    if isinstance(op, nn.DequantizeCache) and isinstance(update := op.codes.op, nn.KVUpdate) and update.pos is None:
        new = update.new.op
        if isinstance(new, nn.QuantizeCache) and new.bits == op.bits and _symbol(new.scale) is _symbol(op.scale):
            return _Cache(update, new.x, op.scale, op.bits)
    return None


def _symbol(value: Value) -> object:
    """The weight that a value is, or else the value."""
    return value.op.symbol if isinstance(value.op, Weight) else value


def _rope_input(x: Value) -> Value:
    assert isinstance(x.op, nn.Rope)
    return x.op.x


def _swapped(x: Value) -> Value | None:
    """x with heads and seq exchanged, where that undoes a transpose; also through a norm over a head's features."""
    if isinstance(x.op, prim.Transpose) and x.op.perm == _SWAP:
        return x.op.x
    if isinstance(x.op, nn.RMSNorm):
        inner = _swapped(x.op.x)
        return None if inner is None else nn.rms_norm(inner, x.op.weight, x.op.eps)
    return None


def _packed(flat: list[Value]) -> Value | None:
    """The value that q, k and v are the pieces of, if they are all its pieces in order."""
    split = flat[0].op
    if isinstance(split, prim.Split) and split.axis == -1 and list(split.results) == flat:
        return split.x
    return None


def _padding_mask(mask: Value | None) -> Value | None:
    """The attention_mask i64[batch, total] that `mask` = ne(reshape(attention_mask, [batch, 1, 1, total]), 0) shows."""
    op = mask.op if mask is not None else None
    if not isinstance(op, prim.Ne) or not isinstance(op.y.op, prim.Constant) or op.y.op.value != 0:
        return None
    inner = op.x.op
    if not isinstance(inner, prim.Reshape) or inner.x.type.rank != 2 or inner.x.type.dtype is not i64:
        return None
    batch, total = inner.x.type.shape
    return inner.x if inner.shape == (batch, 1, 1, total) else None


def _near(seq: Size, total: Size, window: int, causal: bool) -> Value | None:
    """bool[1, 1, seq, total]: the positions that lie less than `window` back and, if `causal`, not ahead."""
    if not window and not causal:
        return None
    at = prim.reshape(prim.iota(seq, i64, total - seq), (1, 1, seq, 1))
    behind = prim.sub(at, prim.reshape(prim.iota(total, i64), (1, 1, 1, total)))
    near = prim.lt(behind, prim.constant(window, i64)) if window else None
    past = prim.ge(behind, prim.constant(0, i64)) if causal else None
    return prim.and_(near, past) if near is not None and past is not None else near if past is None else past
