"""Axes through the nn dialect."""

from __future__ import annotations

from ...dims import floordiv
from ...ops import nn
from ..axis import Axis, fix, mark, mix, product_of, sum_of, unify
from .base import (
    ACTIVATED,
    HEAD_FEATURES,
    INDEXED,
    KV_HEADS,
    QUERY_HEADS,
    VALUE_FEATURES,
    At,
    Axes,
    broadcast,
    rule,
)


@rule(nn.Linear)
def _linear(op: nn.Linear, at: At) -> list[Axes]:
    x, weight = at(op.x), at(op.weight)
    unify(x[-1], weight[1])
    if op.bias is not None:
        unify(weight[0], at(op.bias)[0])
    return [(*x[:-1], weight[0])]


@rule(nn.GatedMLP)
def _gated_mlp(op: nn.GatedMLP, at: At) -> list[Axes]:
    x, gate, up, down = at(op.x), at(op.gate), at(op.up), at(op.down)
    for matrix in (gate, up):
        unify(x[-1], matrix[1])
        unify(matrix[0], down[1])
    for bias, axis in ((op.gate_bias, gate[0]), (op.up_bias, up[0]), (op.down_bias, down[0])):
        if bias is not None:
            unify(at(bias)[0], axis)
    mark(down[1], ACTIVATED)
    return [(*x[:-1], down[0])]


@rule(nn.Experts, nn.MoE)
def _experts(op: nn.Experts | nn.MoE, at: At) -> list[Axes]:
    """The features of x and of the result may lose indices, and so may those inside, if all experts lose the same."""
    x, gate, up, down = at(op.x), at(op.gate), at(op.up), at(op.down)
    for stack in (gate, up):
        unify(x[-1], stack[2])
        unify(stack[1], down[2])
    for stack in (gate, up, down):
        fix(stack[0], "tokens choose experts by number")
    for axis in (*at(op.chosen), *at(op.scores)) if isinstance(op, nn.Experts) else at(op.logits):
        fix(axis, "tokens choose experts by number")
    return [(*x[:-1], down[1])]


@rule(nn.Embedding)
def _embedding(op: nn.Embedding, at: At) -> list[Axes]:
    rows, features = at(op.weight)
    fix(rows, INDEXED)
    return [(*at(op.ids), features)]


@rule(nn.RMSNorm, nn.LayerNorm)
def _norm(op: nn.RMSNorm | nn.LayerNorm, at: At) -> list[Axes]:
    x = at(op.x)
    for parameter in op.operands[1:]:
        if parameter is not None:
            unify(x[-1], at(parameter)[0])
    mix(x[-1], f"{op.opname} over it")
    return [x]


@rule(nn.AddRMSNorm)
def _add_norm(op: nn.AddRMSNorm, at: At) -> list[Axes]:
    total = broadcast(op.x.type.shape, [at(op.x), at(op.residual)])
    unify(total[-1], at(op.weight)[0])
    mix(total[-1], f"{op.opname} over it")
    return [total, total]


@rule(nn.Rope)
def _rope(op: nn.Rope, at: At) -> list[Axes]:
    """Features of a head move in pairs, each with its frequency."""
    x, frequency = at(op.x), at(op.inv_freq)[0]
    pair = Axis(2)
    fix(pair, "rope turns pairs")
    turned = product_of((frequency, pair) if op.interleaved else (pair, frequency))
    unify(x[-1], sum_of((turned, Axis(x[-1].size - turned.size))))
    if at(op.positions)[-1].size == x[2].size:
        unify(x[2], at(op.positions)[-1])
    return [x]


@rule(nn.Attention)
def _attention(op: nn.Attention, at: At) -> list[Axes]:
    """Query heads are kv heads times groups; q and k share features, v and the result do."""
    q, k, v = at(op.q), at(op.k), at(op.v)
    unify(q[0], k[0])
    unify(k[0], v[0])
    unify(k[1], v[1])
    unify(k[2], v[2])
    unify(q[3], k[3])
    group = Axis(floordiv(q[1].size, k[1].size))
    unify(q[1], product_of((k[1], group)))
    mark(k[1], KV_HEADS)
    mark(group, QUERY_HEADS)
    mark(q[3], HEAD_FEATURES)
    mark(v[3], VALUE_FEATURES)
    mix(k[2], "softmax over it")
    if op.mask is not None:
        broadcast((q[0].size, q[1].size, q[2].size, k[2].size), [(q[0], q[1], q[2], k[2]), at(op.mask)])
    if op.sinks is not None:
        unify(at(op.sinks)[0], q[1])
    return [(*q[:3], v[3])]


@rule(nn.KVUpdate)
def _kv_update(op: nn.KVUpdate, at: At) -> list[Axes]:
    cache, new = at(op.cache), at(op.new)
    for i in (0, 1, 3):
        unify(cache[i], new[i])
    length = Axis(op.results[0].type.shape[2])
    return [(*cache[:2], cache[2] if op.pos is not None else length, cache[3])]


@rule(nn.Softmax)
def _softmax(op: nn.Softmax, at: At) -> list[Axes]:
    mix(at(op.x)[-1], "softmax over it")
    return [at(op.x)]
