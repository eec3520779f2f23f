"""How does the fast profile say things: with the ops that ONNX Runtime adds under com.microsoft."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from irlab.backends.onnx import codes, storage
from irlab.backends.onnx.dialect import FlatRope, GroupQueryAttention
from irlab.backends.onnx.emitter import MICROSOFT, Emitter, Lowering
from irlab.backends.onnx.lowerings import neural
from irlab.backends.onnx.rope_table import RopeTable
from irlab.dims import floordiv
from irlab.ir import Op, Value, Weight
from irlab.ops import nn
from irlab.types import i32, tensor
from irlab.weights import WeightSymbol


def linear(op: nn.Linear, e: Emitter) -> None:
    """MatMulNBits of blocks of codes; FusedMatMul of a matrix that is also read in its own shape; else MatMul."""
    symbol = codes.blocked(op.weight) if e.vocabulary.blocks == "nbits" else None
    if symbol is not None:
        bias = e[op.bias] if op.bias is not None else ""
        inputs, attributes = block_matmul(e, op.x, symbol, bias)
        e.result(op, "MatMulNBits", *inputs, **attributes)
    elif _is_shared(op.weight) and e.vocabulary.has("ms:FusedMatMul"):
        attributes = {"domain": MICROSOFT, "transA": 0, "transB": 1, "alpha": 1.0}
        if op.bias is None:
            e.result(op, "FusedMatMul", e[op.x], e[op.weight], **attributes)
        else:
            product = e.node("FusedMatMul", e[op.x], e[op.weight], **attributes)
            e.result(op, "Add", product, e[op.bias])
    else:
        neural.linear(op, e)


def _is_shared(weight: Value) -> bool:
    """Whether a plain weight is also read in its own shape."""
    return isinstance(weight.op, Weight) and weight.type.encoding is None and neural.has_other_readers(weight)


def block_matmul(e: Emitter, x: Value, symbol: WeightSymbol, bias: str) -> tuple[list[str], dict[str, Any]]:
    """Inputs and attributes of MatMulNBits: x times the transposed weight, plus bias."""
    encoding = codes.integer_encoding(symbol)
    rows, columns = storage.matrix_shape(symbol.recipe)
    packed, scales, zeros = codes.nbits(e, symbol, x.type.dtype)
    attributes = {
        "domain": MICROSOFT,
        "K": columns,
        "N": rows,
        "bits": encoding.bits,
        "block_size": encoding.group,
        "accuracy_level": e.accuracy_level,
    }
    return [e[x], packed, scales, zeros, "", bias], attributes


def embedding(op: nn.Embedding, e: Emitter) -> None:
    """GatherBlockQuantized of rows of codes; else Gather."""
    symbol = codes.blocked(op.weight) if e.vocabulary.blocks == "nbits" else None
    if symbol is None:
        neural.embedding(op, e)
        return
    encoding = codes.integer_encoding(symbol)
    packed, scales, zeros = codes.nbits_rows(e, symbol, op.result.type.dtype)
    e.result(
        op,
        "GatherBlockQuantized",
        packed,
        e[op.ids],
        scales,
        zeros,
        domain=MICROSOFT,
        bits=encoding.bits,
        block_size=encoding.group,
        gather_axis=0,
        quantize_axis=1,
    )


def rms_norm(op: nn.RMSNorm, e: Emitter) -> None:
    """SimplifiedLayerNormalization, which ONNX Runtime has under ONNX's own domain, for opsets before 23."""
    e.result(op, "SimplifiedLayerNormalization", e[op.x], neural.scale(e, op), axis=-1, epsilon=op.eps)


def rope(op: FlatRope, e: Emitter) -> None:
    """RotaryEmbedding of before opset 23: it looks angles up by position, so each token gets a row of its own."""
    batch, seq, n = op.cos.type.shape

    def row_numbers() -> str:
        count = e.sizes.scalar(batch * seq)
        rows = e.node("Range", e.sizes.scalar(0), count, e.sizes.scalar(1))
        return e.node("Reshape", rows, e.sizes.shape((batch, seq)))

    def rows(value: Value) -> str:
        return e.memo(("rows", value), lambda: e.node("Reshape", e[value], e.sizes.shape((batch * seq, n))))

    numbers = e.memo(("row numbers", batch, seq), row_numbers)
    size = floordiv(op.x.type.shape[2], op.heads)
    partial = {} if n * 2 == size else {"rotary_embedding_dim": n * 2, "num_heads": op.heads}
    attributes: dict[str, Any] = {"domain": MICROSOFT, "interleaved": int(op.interleaved), **partial}
    e.result(op, "RotaryEmbedding", e[op.x], numbers, rows(op.cos), rows(op.sin), **attributes)


def group_query(op: GroupQueryAttention, e: Emitter) -> None:
    """GroupQueryAttention, with rotary embedding from a stored table where the op has it inside."""
    mask = op.attention_mask
    i32_type = storage.ONNX_TYPE[i32]

    def lengths() -> str:
        counts = e.node("ReduceSum", e[mask], e.ints(1), keepdims=0)
        return e.node("Cast", e.node("Sub", counts, e.ints(1)), to=i32_type)

    def longest() -> str:
        return e.node("Cast", e.sizes.scalar(mask.type.shape[1]), to=i32_type)

    inputs = [e[op.qkv], *(e[v] if v is not None else "" for v in (op.k, op.v)), e[op.past_k], e[op.past_v]]
    inputs += [e.memo(("lengths", mask), lengths), e.memo(("longest", mask), longest)]
    if op.inv_freq is not None and op.positions is not None:
        inputs += [_table(e, op, np.cos, "cos"), _table(e, op, np.sin, "sin"), e[op.positions]]
    else:
        inputs += ["", "", ""]
    inputs += ["", e[op.sinks] if op.sinks is not None else ""]
    attributes: dict[str, Any] = {}
    if op.k_scale is not None and op.v_scale is not None:
        inputs += [e[op.k_scale], e[op.v_scale]]
        kinds = ["PER_TENSOR" if scale.type.size == 1 else "PER_CHANNEL" for scale in (op.k_scale, op.v_scale)]
        attributes = {"k_quant_type": kinds[0], "v_quant_type": kinds[1], "kv_cache_bit_width": op.cache_bits}
    e.result(
        op,
        "GroupQueryAttention",
        *inputs,
        domain=MICROSOFT,
        num_heads=op.heads,
        kv_num_heads=op.kv_heads,
        scale=op.scale,
        softcap=op.softcap,
        local_window_size=op.window or -1,
        do_rotary=int(op.inv_freq is not None),
        rotary_interleaved=int(op.interleaved),
        **attributes,
    )


def _table(e: Emitter, op: GroupQueryAttention, function: np.ufunc, label: str) -> str:
    """cos or sin of every angle below max_length, stored: [max_length, head_dim / 2]."""
    assert op.inv_freq is not None and isinstance(op.inv_freq.op, Weight)
    symbol, dtype = op.inv_freq.op.symbol, op.qkv.type.dtype
    n = symbol.type.shape[0]
    table = RopeTable(tensor(dtype, (op.max_length, n)), symbol.recipe, function.__name__, op.rope_scale)
    key = (label, symbol.name, op.max_length, op.rope_scale, dtype)
    name = f"{symbol.name}.{label}_table"
    return e.once(key, lambda: storage.plain(e.unique(name), WeightSymbol(name, table)))


LOWERINGS: Final[dict[type[Op], Lowering]] = {
    nn.Linear: linear,
    nn.Embedding: embedding,
    GroupQueryAttention: group_query,
}
