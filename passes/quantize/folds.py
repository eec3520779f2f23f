"""Where can a scale of channels be folded in, so that the model computes the same? Behind norms, and between matrices.

    norm -> q, k, v          norm -> gate, up          v -> o, through attention          up -> down, in a gated MLP

What a channel is divided by where it is made, the columns that read it are multiplied by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from irlab.ir import Graph, Op, Value, Weight
from irlab.layers import Layer
from irlab.ops import nn, prim
from irlab.weight_uses import weight_uses

Channels = npt.NDArray[np.intp]

_NORMS = (nn.RMSNorm, nn.LayerNorm, nn.AddRMSNorm)


@dataclass(frozen=True)
class Fold:
    """Channels that may be scaled. `matrices`: the weights whose columns read them. `sources`: the weights whose first
    axis makes them (a norm's vector, a matrix, a bias). `channels[j]`: the source channel that column j reads."""

    matrices: tuple[str, ...]
    sources: tuple[str, ...]
    channels: Channels


def folds(layer: Layer) -> list[Fold]:
    """The places in `layer` where scales fold in: only through weights and values that nothing else reads."""
    return list(_Finder(layer).find())


class _Finder:
    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        graph: Graph = layer.whole
        self._uses = weight_uses(graph)

    def find(self) -> Iterator[Fold]:
        for op in self.layer.ops:
            if isinstance(op, _NORMS):
                yield from self._behind_norm(op)
            elif isinstance(op, nn.GatedMLP):
                if all(map(self._own, (op.up, op.down))) and self._own_bias(op.up_bias):
                    yield self._fold([op.down], [op.up, op.up_bias])
            elif isinstance(op, nn.Linear):
                yield from self._between_value_and_output(op)

    def _behind_norm(self, norm: nn.RMSNorm | nn.LayerNorm | nn.AddRMSNorm) -> Iterator[Fold]:
        bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
        matrices: list[Value] = []
        for user, times in norm.results[-1].uses.items():
            if isinstance(user, nn.Linear):
                matrices.append(user.weight)
            elif isinstance(user, nn.GatedMLP):
                matrices += [user.gate, user.up]
            else:
                return
            if times > 1:
                return
        own = norm.weight is not None and all(map(self._own, [norm.weight, *matrices])) and self._own_bias(bias)
        if matrices and own:
            yield self._fold(matrices, [norm.weight, bias])

    def _between_value_and_output(self, output: nn.Linear) -> Iterator[Fold]:
        attention = _back(output.x, (prim.Reshape, prim.Transpose))
        if not isinstance(attention, nn.Attention) or not _only(output.x, attention):
            return
        value = _back(attention.v, (prim.Reshape, prim.Transpose))
        if not isinstance(value, nn.Linear) or not _only(attention.v, value):
            return
        heads, kv_heads, width = attention.q.type.shape[1], attention.v.type.shape[1], attention.v.type.shape[3]
        if not isinstance(heads, int) or not isinstance(kv_heads, int) or not isinstance(width, int):
            return
        if not self._own(value.weight) or not self._own(output.weight) or not self._own_bias(value.bias):
            return
        if output.weight.type.shape[1] != heads * width or value.weight.type.shape[0] != kv_heads * width:
            return
        columns = np.arange(heads * width)
        # Query heads that share a value head share its scales.
        channels = columns // width // (heads // kv_heads) * width + columns % width
        yield self._fold([output.weight], [value.weight, value.bias], channels)

    def _fold(self, matrices: list[Value], sources: list[Value | None], channels: Channels | None = None) -> Fold:
        columns = matrices[0].type.shape[1]
        assert isinstance(columns, int)
        made = tuple(_name(value) for value in sources if value is not None)
        return Fold(tuple(map(_name, matrices)), made, np.arange(columns) if channels is None else channels)

    def _own(self, value: Value | None) -> bool:
        """Whether `value` is a weight that is read here and nowhere else."""
        return value is not None and isinstance(value.op, Weight) and len(self._uses[_name(value)].users) == 1

    def _own_bias(self, value: Value | None) -> bool:
        return value is None or self._own(value)


def _name(value: Value) -> str:
    assert isinstance(value.op, Weight)
    return value.op.symbol.name


def _back(value: Value, through: tuple[type[Op], ...]) -> Op | None:
    """The op behind `value`, through ops that only move numbers."""
    op = value.op
    while op is not None and isinstance(op, through):
        first = op.operands[0]
        op = None if first is None else first.op
    return op


def _only(value: Value, source: Op) -> bool:
    """Whether every value between `source` and `value` is read once."""
    while True:
        if len(value.uses) != 1 or set(value.uses.values()) != {1}:
            return False
        op = value.op
        if op is source or op is None or op.operands[0] is None:
            return op is source
        value = op.operands[0]
