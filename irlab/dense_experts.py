"""Mixtures of experts for runtimes that cannot choose: every expert runs on every token, and is weighted by its share.

    y = sum over e of share_e * down_e(activation(gate_e(x)) * up_e(x)),    share_e = 0 where e was not chosen

is one wide feed-forward block: the experts' gates stand one below the other, and so do their ups; what is inside is
multiplied by the shares, and one wide product with the downs, side by side, also sums over experts. It costs
experts / k times what the chosen ones cost, and reads each weight once, as products of many tokens do anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TypeAlias

from .ir import Graph, Value, Weight
from .ops import nn, prim
from .ops.nn_op import in_f32, to_dtype_of
from .weights import Reshape, Slice, Transpose, WeightSymbol, static_shape

Mixture: TypeAlias = "nn.MoE | nn.Experts"


def compute_every_expert(graph: Graph, made_by: str, held: Callable[[Mixture], bool] = lambda op: False) -> int:
    """Replace the mixtures of `graph` whose experts are weights by ops that every runtime has, except those that are
    `held`, as nn.moe or as nn.experts with the router spelled out. Gives how many there were."""
    for op in graph.find(nn.MoE):
        if not held(op):
            graph.replace(op, op.decompose(), made_by=made_by)
    found = [op for op in graph.find(nn.Experts) if _of_weights(op) and not held(op)]
    for experts in found:
        graph.replace(experts, _dense(experts), made_by=made_by)
    return len(found)


def _of_weights(op: nn.Experts) -> bool:
    return all(isinstance(value.op, Weight) for value in (op.gate, op.up, op.down)) and op.x.type.rank > 1


def _dense(op: nn.Experts) -> Value:
    count, _, ffn = static_shape(op.down.type)
    lead = op.x.type.shape[:-1]
    gate, up = (nn.linear(op.x, _below_one_another(_symbol(stack))) for stack in (op.gate, op.up))
    inner = prim.reshape(prim.mul(nn.activate(gate, op.activation), up), (*lead, count, ffn))
    shares = to_dtype_of(prim.reshape(_shares(op, count), (*lead, count, 1)), op.x)
    weighted = prim.reshape(prim.mul(inner, shares), (*lead, count * ffn))
    down = _symbol(op.down)
    if down.type.encoding is None:
        return nn.linear(weighted, _beside_one_another(down))
    # Rows of codes stay whole: a product for each expert.
    pieces = prim.split(weighted, (ffn,) * count, -1)
    products = [nn.linear(piece, _one(down, expert)) for expert, piece in enumerate(pieces)]
    return reduce(prim.add, products)


def _shares(op: nn.Experts, count: int) -> Value:
    """How much of each expert, f32[..., experts]."""
    *lead, k = op.chosen.type.shape
    numbers = prim.reshape(prim.iota(count, op.chosen.type.dtype), (*(1 for _ in lead), 1, count))
    is_chosen = prim.eq(prim.reshape(op.chosen, (*lead, k, 1)), numbers)
    scores = prim.reshape(in_f32(op.scores), (*lead, k, 1))
    return prim.sum(prim.where(is_chosen, scores, prim.constant(0.0, scores.type.dtype)), (-2,), False)


def _symbol(value: Value) -> WeightSymbol:
    assert isinstance(value.op, Weight)
    return value.op.symbol


def _below_one_another(stack: WeightSymbol) -> Value:
    """[experts, out, in] as [experts * out, in]."""
    count, rows, columns = static_shape(stack.type)
    return prim.weight(WeightSymbol(f"{stack.name}.rows", Reshape(stack.recipe, (count * rows, columns))))


def _beside_one_another(stack: WeightSymbol) -> Value:
    """[experts, out, in] as [out, experts * in]."""
    count, rows, columns = static_shape(stack.type)
    turned = Reshape(Transpose(stack.recipe, (1, 0, 2)), (rows, count * columns))
    return prim.weight(WeightSymbol(f"{stack.name}.columns", turned))


def _one(stack: WeightSymbol, expert: int) -> Value:
    _, rows, columns = static_shape(stack.type)
    one = Reshape(Slice(stack.recipe, 0, expert, expert + 1), (rows, columns))
    return prim.weight(WeightSymbol(f"{stack.name}.{expert}", one))
