"""How does each norm get a residual stream of its own, narrower one? By linear maps that are then merged into weights.

    %n = nn.rms_norm(%v, @g)        %s = nn.linear(%v, @p)             %n = nn.linear(nn.rms_norm(%s), g p^T)
                              ->    everything else reads nn.linear(%s, p^T) for %v

with p[width, features] of orthonormal rows, which the norm does not notice. That is true of any graph. What remains is
algebra: a map of a sum is the sum of maps, and two maps after each other are one. So the maps disappear in the matrices
that write the stream and that read it, and where the stream itself goes on to the next norm, there remains one small
matrix, from the directions of one norm to those of the next (Ashkboos et al. 2024, SliceGPT, arXiv 2401.15024). Where
they meet something that is not linear (an output, a table that is tied to the head) they stay as they are.

A norm that subtracts the mean is one that does not, of what has none: its p is applied to v - mean(v), and its bias
comes after the map back. A norm whose result is the stream (as in BERT) is no exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from irlab.errors import InputError
from irlab.ir import Graph, Value, Weight
from irlab.ops import nn, prim
from irlab.passes.prune.maps import RULES, Maps, transposed
from irlab.passmgr import Context
from irlab.types import tensor
from irlab.weight_uses import weight_uses
from irlab.weights import (
    Array,
    Recipe,
    Scale,
    WeightSymbol,
    numpy_dtype,
    static_shape,
)

Norm = nn.RMSNorm | nn.LayerNorm


@dataclass(frozen=True)
class Bottleneck:
    """A value of the stream that `norms` normalise, and the directions that are left of it: f32[width, features]."""

    name: str
    value: Value
    norms: tuple[Norm, ...]
    directions: Recipe


def narrow(graph: Graph, bottlenecks: Sequence[Bottleneck], ctx: Context, *, keep_tied: bool) -> None:
    """Give every bottleneck its directions, in place. `keep_tied`: a table that is the head as well stays one weight,
    with a map behind it and before it."""
    tied = frozenset(name for name, uses in weight_uses(graph).items() if len(uses.users) > 1)
    maps = Maps(tied, keep_tied)
    for bottleneck in bottlenecks:
        _insert(graph, bottleneck, maps)
    graph.erase_dead()
    ctx.rewrite(graph, [rule(maps) for rule in RULES])
    graph.erase_dead()


def require_means_unread(streams: Mapping[Value, Sequence[Norm]]) -> None:
    """Raise InputError, naming the op, where a stream whose norms subtract the mean is read by something else too: the
    directions that are left have no mean."""
    stack = [value for value, norms in streams.items() if any(isinstance(norm, nn.LayerNorm) for norm in norms)]
    seen = set(stack)
    while stack:
        for user in stack.pop().uses:
            if isinstance(user, prim.Add):
                stack += [user.result] if user.result not in seen else []
                seen.add(user.result)
            elif not isinstance(user, nn.LayerNorm):
                where = user.loc.path if user.loc is not None and user.loc.path else "the graph"
                raise InputError(
                    f"prune-hidden: {user.opname} in {where} reads a stream whose norms subtract its mean",
                    "method=select leaves out single features",
                )


def spell_out(graph: Graph) -> None:
    """Let sums of the stream and their norms be ops of their own."""
    for op in graph.find(nn.AddRMSNorm):
        graph.replace(op, *op.decompose())


def _insert(graph: Graph, bottleneck: Bottleneck, maps: Maps) -> None:
    value, into = bottleneck.value, bottleneck.directions
    dtype = value.type.dtype
    width, size = static_shape(into.type)
    near = value.op or bottleneck.norms[0]
    small = nn.linear(value, maps.weight(f"{bottleneck.name}.into.weight", into, dtype, bottleneck.name))
    whole = nn.linear(small, maps.weight(f"{bottleneck.name}.back.weight", transposed(into), dtype))
    others = [user for user in value.uses if user not in bottleneck.norms]
    end = whole if others else small
    assert end.op is not None and small.op is not None
    graph.attach(end.op, near.seq, near.loc)
    graph.replace_uses(value, end)
    graph.set_operand(small.op, 0, value)
    for number, norm in enumerate(bottleneck.norms):
        # The mean of squares is over fewer features, which have nearly all of the energy.
        gain = Array(tensor(dtype, (width,)), np.full(width, (size / width) ** 0.5, numpy_dtype(dtype)))
        name = f"{bottleneck.name}.weight" if not number else f"{bottleneck.name}.{number}.weight"
        normed = nn.rms_norm(small, prim.weight(WeightSymbol(name, gain)), norm.eps * size / width)
        computed = norm.weight is not None and not isinstance(norm.weight.op, Weight)
        back = into if computed or norm.weight is None else Scale(into, maps.recipe(norm.weight))
        read = maps.weight(f"{name.removesuffix('weight')}read.weight", transposed(back), dtype)
        bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
        made = nn.linear(normed, read, None if computed else bias)
        if computed and norm.weight is not None:
            made = prim.mul(made, norm.weight)
            made = made if bias is None else prim.add(made, bias)
        graph.replace(norm, made, made_by="prune-hidden")
