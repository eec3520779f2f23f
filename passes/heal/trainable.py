"""What can be trained, and what does that take?"""

from __future__ import annotations

import math

from irlab.ir import Graph
from irlab.ops import nn
from irlab.weight_uses import weight_uses
from irlab.weights import WeightSymbol, static_shape


def trainable(graph: Graph, lora: bool) -> list[WeightSymbol]:
    """The weights of `graph` that healing may change: plain floats. With `lora` no tables of embeddings."""
    found = []
    for uses in weight_uses(graph).values():
        kind = uses.symbol.type
        is_table = any(isinstance(op, nn.Embedding) for op, _ in uses.users)
        if kind.encoding is None and kind.dtype.is_float and not (lora and is_table):
            found.append(uses.symbol)
    return found


def matrices(graph: Graph) -> set[str]:
    """The weights that are read as matrices of products, and in no other way."""
    return {name for name, uses in weight_uses(graph).items() if uses.is_matrix}


def training_bytes(graph: Graph, rank: int | None) -> int:
    """About what training takes beside activations: f32 weights, gradients and two moments of what is trained, and the
    f32 weights of all."""
    adapted = matrices(graph) if rank else set()
    total = numbers(graph)
    for symbol in trainable(graph, bool(rank)):
        shape = static_shape(symbol.type)
        count = math.prod(shape)
        if rank and symbol.name in adapted and 2 * rank < min(shape):
            total += 2 * count + 4 * rank * sum(shape)
        else:
            total += 4 * count
    return 4 * total


def numbers(graph: Graph) -> int:
    """How many numbers the weights of `graph` hold."""
    return sum(math.prod(static_shape(symbol.type)) for symbol in graph.weights().values())
