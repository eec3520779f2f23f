"""How are attention, rope and the cache said in TensorRT? As its attention, rotary embedding and cache layers.

A cache that is an input of the graph is a buffer of fixed length in the engine, which a KVCacheUpdate layer writes in
place; attention reads the first past + seq positions of it. Any other growing cache is a concatenation.
"""

from __future__ import annotations

from typing import Final

from irlab.backends.tensorrt.emitter import Emitter, Lowering
from irlab.backends.tensorrt.library import ITensor, load
from irlab.backends.tensorrt.lowerings.arithmetic import elementwise, unary
from irlab.backends.tensorrt.lowerings.layout import expanded, joined, sliced
from irlab.backends.tensorrt.lowerings.literals import counted
from irlab.dims import Size
from irlab.ir import Op
from irlab.ops import nn
from irlab.types import DType, Shape, bool_, f32, i32, i64

HIDDEN: Final = -30000.0
"""What is added to a score that a mask hides. Finite, because a row where everything is hidden (a padded query) must
not give nan, which would spread through the cache; small enough that exp gives 0 in every dtype."""


def fits(op: nn.Attention) -> bool:
    """Whether TensorRT's attention can say it: no softcap, no sinks, values as wide as keys."""
    return not op.softcap and op.sinks is None and op.v.type.shape[3] == op.k.type.shape[3]


def _rope(op: nn.Rope, e: Emitter) -> None:
    n = op.inv_freq.type.shape[0]
    if not isinstance(n, int):
        raise e.refused("rotary_embedding", "a symbolic number of frequencies")
    cos, sin = (_angles(op, e, function) for function in ("COS", "SIN"))
    whole = op.x.type.shape[3] == n * 2
    # 0 is the whole head.
    e.result(op, "rotary_embedding", e[op.x], cos, sin, op.interleaved, 0 if whole else n * 2)


def _angles(op: nn.Rope, e: Emitter, function: str) -> ITensor:
    """cos or sin of the angles, [batch, seq, n] in the dtype of x; computed once for all layers."""
    dtype, (batch, _, seq, _) = op.x.type.dtype, op.x.type.shape
    n = op.inv_freq.type.shape[0]

    def make() -> ITensor:
        positions = e.cast(e[op.positions], f32)
        rank = op.positions.type.rank
        column = e.tensor("unsqueeze", positions, e.ints(*([0, 2] if rank == 1 else [2])))
        angles = elementwise(e, "PROD", column, e.widened(op.inv_freq, 3))
        turned = unary(e, function, angles)
        if op.scale != 1.0:
            turned = elementwise(e, "PROD", turned, e.number(op.scale, f32, 3))
        first = 1 if rank == 1 else op.positions.type.shape[0]
        return expanded(e, e.cast(turned, dtype), (first, seq, n), (batch, seq, n))

    return e.memo((function, op.positions, op.inv_freq, op.scale, dtype, batch), make)


def _attention(op: nn.Attention, e: Emitter) -> None:
    library = load()
    q = elementwise(e, "PROD", e[op.q], e.number(op.scale, op.q.type.dtype, 4)) if op.scale != 1.0 else e[op.q]
    mask = _mask(op, e)
    # The queries are the last of the positions: the triangle ends in the lower right corner.
    kinds = library.CausalMaskKind
    causal = kinds.LOWER_RIGHT if op.causal and mask is None else kinds.NONE
    first = e.network.num_layers
    layer = e.network.add_attention_v2(q, e[op.k], e[op.v], library.AttentionNormalizationOp.SOFTMAX, causal)
    if layer is None:
        raise e.refused("attention_v2")
    layer.name = e.unique("attention")
    # An attention is two layers of the network, where it begins and where it ends.
    for index, kind in ((first, "attention_input"), (first + 1, "attention_output")):
        e.named(e.network.get_layer(index), kind)
    # Without a fused kernel for the type and head size the builder may use plain layers.
    layer.decomposable = True
    if mask is not None:
        layer.mask = mask
    e.bind(op.result, layer.get_output(0))


def _mask(op: nn.Attention, e: Emitter) -> ITensor | None:
    """Everything that hides scores, as a bias [batch or 1, heads or 1, seq, total] in the dtype of q; None where the
    triangle is all."""
    if op.mask is None and not op.window:
        return None
    seq, total, dtype = op.q.type.shape[2], op.k.type.shape[2], op.q.type.dtype
    key = ("mask", op.mask, op.window, op.causal, seq, total, dtype)
    return e.memo(key, lambda: _bias(op, e, (seq, total), dtype))


def _bias(op: nn.Attention, e: Emitter, rows: tuple[Size, Size], dtype: DType) -> ITensor:
    visible = _near(op, e, *rows)
    shape: Shape = (1, 1, 1, 1) if visible is None else (1, 1, *rows)
    bias = e.number(0.0, dtype, 4)
    if op.mask is not None:
        given = e.widened(op.mask, 4)
        lead = (1,) * (4 - op.mask.type.rank) + op.mask.type.shape
        shape = tuple(b if a == 1 else a for a, b in zip(lead, shape))
        if op.mask.type.dtype is bool_:
            visible = given if visible is None else elementwise(e, "AND", given, visible)
        else:
            lowest = e.number(HIDDEN, op.mask.type.dtype, 4)
            bias = e.cast(elementwise(e, "MAX", given, lowest), dtype)
    if visible is not None:
        bias = e.tensor("select", visible, bias, e.number(HIDDEN, dtype, 4))
    return expanded(e, bias, shape, (*shape[:2], *rows))


def _near(op: nn.Attention, e: Emitter, seq: Size, total: Size) -> ITensor | None:
    """bool[1, 1, seq, total]: what lies less than `window` back and, if causal, not ahead."""
    if not op.window and not op.causal:
        return None
    at = e.tensor("unsqueeze", counted(e, seq, total - seq), e.ints(0, 1, 3))
    key = e.tensor("unsqueeze", counted(e, total), e.ints(0, 1, 2))
    behind = elementwise(e, "SUB", at, key)
    near = elementwise(e, "LESS", behind, e.number(op.window, i64, 4)) if op.window else None
    if not op.causal:
        return near
    past = elementwise(e, "GREATER", behind, e.number(-1, i64, 4))
    return past if near is None else elementwise(e, "AND", near, past)


def _kv_update(op: nn.KVUpdate, e: Emitter) -> None:
    batch, _, seq, _ = op.new.type.shape
    buffer = e.buffers.get(op.cache)
    if buffer is not None:
        total = op.result.type.shape[2]
        at = expanded(e, e.cast(e.sizes.size(total - seq), i32), (1,), (batch,))
        written = _written(op, e, buffer, at)
        e.buffers_written[op.cache] = written
        e.bind(op.result, sliced(e, written, (0,) * 4, op.result.type.shape, (1,) * 4))
    elif op.pos is not None:
        at = expanded(e, e.unsqueezed(e.cast(e[op.pos], i32), range(1)), (1,), (batch,))
        e.bind(op.result, _written(op, e, e[op.cache], at))
    else:
        e.bind(op.result, joined(e, [e[op.cache], e[op.new]], 2))


def _written(op: nn.KVUpdate, e: Emitter, cache: ITensor, at: ITensor) -> ITensor:
    """The buffer `cache` with new rows from position `at` (i32[batch]) on."""
    return e.tensor("kv_cache_update", cache, e[op.new], at, load().KVCacheMode.LINEAR)


LOWERINGS: Final[dict[type[Op], Lowering]] = {
    nn.Rope: _rope,
    nn.Attention: _attention,
    nn.KVUpdate: _kv_update,
}
