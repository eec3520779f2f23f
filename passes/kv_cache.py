"""The kv-cache pass: a causal graph becomes a cached decoder."""

from __future__ import annotations

from dataclasses import dataclass

from irlab import dims
from irlab.errors import InputError
from irlab.ir import Graph, Module, Op, Value, path_of, place_of
from irlab.ops import nn, prim
from irlab.passmgr import Context, Pass
from irlab.types import i64, tensor


@dataclass(frozen=True)
class KVCache(
    Pass,
    name="kv-cache",
    requires={"fuse": "it looks for nn.attention"},
    before={
        "kv-cache": "the graph has a cache already",
        "decompose": "it looks for nn.attention, which decompose takes apart",
    },
):
    """Turns a causal graph into a cached decoder: past in, present out, positions from outside.

    New inputs, in the convention of Hugging Face and onnxruntime-genai (N counts attention ops):

        attention_mask                  i64[batch, past + seq]      1 where a position holds a token
        position_ids                    i64[batch, seq]
        past_key_values.N.key, .value   [batch, kv_heads, past, head_dim]

    New outputs: present.N.key, present.N.value, of length past + seq. Each attention then reads

        %k2 = nn.kv_update(%past_key_values.N.key, %k)
        %y = nn.attention(%q, %k2, %v2, %mask)

    Of keys and values that `quantize-cache` rounds, the codes are cached. Refused where attention is not causal or
    positions are used for anything but rotary embedding.
    """

    def run(self, module: Module, ctx: Context) -> None:
        graph = module.graph
        batch, seq = _batch_and_sequence(graph)
        attentions = [op for op in graph.topo() if isinstance(op, nn.Attention)]
        if not attentions:
            raise InputError("kv-cache: the graph has no nn.attention", "run fuse first, on a decoder")
        past = dims.symbol("past")
        total = past + seq
        attention_mask = graph.input("attention_mask", tensor(i64, (batch, total)))
        position_ids = graph.input("position_ids", tensor(i64, (batch, seq)))
        _shift_positions(graph, position_ids)
        visible = prim.ne(prim.reshape(attention_mask, (batch, 1, 1, total)), prim.constant(0, i64))
        outputs = graph.outputs
        for number, op in enumerate(attentions):
            _require_causal(op)
            mask = visible if op.mask is None else prim.and_(op.mask, visible)
            graph.set_operand(op, op.operand_names.index("mask"), mask)
            for part, index in (("key", 1), ("value", 2)):
                new = op.operands[index]
                assert new is not None
                # Of keys and values that are quantised (quantize-cache), the codes are kept.
                held = new.op if isinstance(new.op, nn.DequantizeCache) else None
                new = new if held is None else held.codes
                b, heads, _, width = new.type.shape
                cache = graph.input(f"past_key_values.{number}.{part}", tensor(new.type.dtype, (b, heads, past, width)))
                updated = nn.kv_update(cache, new)
                read = updated if held is None else nn.dequantize_cache(updated, held.scale, held.dtype, held.bits)
                graph.set_operand(op, index, read)
                outputs[f"present.{number}.{part}"] = updated
        graph.set_outputs(outputs)
        ctx.note_rewrites({"cache-attention": len(attentions)})


def _batch_and_sequence(graph: Graph) -> tuple[dims.Size, dims.Size]:
    for value in graph.inputs:
        if value.name == "attention_mask" or (value.name or "").startswith("past_key_values"):
            raise InputError(f"kv-cache: the graph already has the input %{value.name}", "run kv-cache once")
    for value in graph.inputs:
        if value.name == "input_ids" and value.type.rank == 2:
            return value.type.shape[0], value.type.shape[1]
    raise InputError("kv-cache: the graph has no input_ids[batch, seq]", "it works on decoders")


def _require_causal(op: nn.Attention) -> None:
    where = path_of(op) or "an nn.attention"
    if not op.causal:
        raise InputError(f"kv-cache: {where} is not causal", "only decoders can be cached")
    if op.mask is not None and op.mask.type.dtype.is_float:
        raise InputError(f"kv-cache: {where} adds a float mask, whose meaning for cached positions is unknown")


def _shift_positions(graph: Graph, position_ids: Value) -> None:
    """Let every rotary embedding that counts from 0 read `position_ids` instead."""
    for op in graph.find(nn.Rope):
        if _counts_from_zero(op.positions):
            graph.set_operand(op, 1, position_ids)
    for left in graph.find(prim.Iota):
        if dims.symbols(left.size):
            user = next(iter(left.result.uses))
            raise InputError(
                f"kv-cache: positions are used by {place_of(user)}",
                "only positions of nn.rope can be shifted; run fuse first",
            )


def _counts_from_zero(positions: Value) -> bool:
    """Whether `positions` is 0, 1, 2 ... along the last axis, possibly repeated over the batch."""
    op: Op | None = positions.op
    while isinstance(op, prim.Reshape | prim.Expand | prim.Cast):
        op = op.x.op
    return isinstance(op, prim.Iota) and op.start == 0 and op.step == 1
