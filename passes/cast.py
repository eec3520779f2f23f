"""The cast pass: the floats that a model computes in become another dtype, what must be precise stays f32."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

from irlab.errors import InputError
from irlab.ir import Graph, Module, Op, Return, Value, Weight
from irlab.ops import nn, prim
from irlab.ops.call import Call
from irlab.passmgr import Context, Pass
from irlab.types import DTYPES, DType, TensorType, f32
from irlab.weight_uses import operand_name, weight_uses
from irlab.weights import Cast as CastRecipe
from irlab.weights import WeightSymbol, static_shape

_STAYS_F32: Final[dict[type[Op], frozenset[str]]] = {nn.Rope: frozenset({"inv_freq"})}
"""Operands that are f32 by definition of the op, whatever dtype the model computes in."""


@dataclass(frozen=True)
class Cast(
    Pass,
    name="cast",
    exactness="lossy",
    requires={"fuse": "what must stay f32 inside norms, softmax and rotary angles is known of nn ops"},
):
    """Changes the dtype that the model computes in, weights, inputs and outputs with it.

        @w : bf16[8, 8] = file(...)                  @w : f16[8, 8] = cast(file(...), f16)
        %y = nn.linear(%x, @w) : bf16[n, 8]     ->   %y = nn.linear(%x, @w) : f16[n, 8]

    The dtype that most weights have is replaced by `dtype`. What stays: casts to f32 and what is computed behind them,
    the f32 inside nn ops (means of norms, softmax, rotary angles: why fuse runs first), tables that no float weight
    flows into, and encoded weights. Opaque calls and regions see the dtypes that they saw before, through casts.
    bf16 to f32 is exact. Numbers that f16 cannot hold are an error when the weights are read.
    """

    dtype: Literal["f16", "bf16", "f32"] = "f16"

    def run(self, module: Module, ctx: Context) -> None:
        new = DTYPES[self.dtype]
        old = working_dtype(module.graph)
        if old is new:
            return
        _Recast(module.graph, old, new).run()
        ctx.note_rewrites({"cast": 1})


def working_dtype(graph: Graph) -> DType:
    """The float dtype of most weights, by numbers; of most results where no weight is a plain float."""
    counts: Counter[DType] = Counter()
    for symbol in graph.weights().values():
        if symbol.type.encoding is None and symbol.type.dtype.is_float:
            counts[symbol.type.dtype] += math.prod(static_shape(symbol.type))
    for op in graph.ops() if not counts else ():
        counts.update(result.type.dtype for result in op.results if result.type.dtype.is_float)
    if not counts:
        raise InputError("cast: the graph computes with no floats")
    return counts.most_common(1)[0][0]


class _Recast:
    """Rebuilds the ops of a graph in place, from producers to users, so that every type is inferred anew.

    Meanwhile `before` holds the type that each value of the new graph had in the old one.
    """

    def __init__(self, graph: Graph, old: DType, new: DType) -> None:
        self.graph, self.old, self.new = graph, old, new
        self.before: dict[Value, TensorType] = {}
        self.precise = {
            name
            for name, uses in weight_uses(graph).items()
            if all(operand in _STAYS_F32.get(type(op), ()) for op, operand in uses.users)
        }
        regions = [region for op in graph.region_ops() for region in op.regions]
        self.in_regions = {name for region in regions for name in region.weights()}

    def run(self) -> None:
        """Change the graph."""
        order = self.graph.topo()
        for value in self.graph.inputs:
            self.before[value] = value.type
            if value.type.element is self.old:
                value.type = value.type.with_element(self.new)
        for op in order:
            if isinstance(op, Return):
                self.graph.set_outputs(self.graph.outputs)
                continue
            results = [result.type for result in op.results]
            values = self._rebuild(op)
            self.graph.replace(op, *values)
            self.before.update(zip(values, results))

    def _rebuild(self, op: Op) -> tuple[Value, ...]:
        """The results of `op`, made anew from its operands, which are new already."""
        if isinstance(op, Weight):
            return (self._weight(op),)
        if isinstance(op, prim.Cast) and op.x.type.element is self._attribute(op.dtype):
            return (op.x,)
        attributes = {name: self._attribute(value) for name, value in op.attributes.items()}
        if isinstance(op, Call) or op.region_names:
            operands = [v and self._cast(v, self.before[v].dtype) for v in op.operands]
            return op.rebuild(operands).results
        results = op.rebuild(self._operands(op), **attributes).results
        if isinstance(op, nn.Embedding) and op.result.type.element is self.old:
            # A table that is encoded gives f32.
            return (self._cast(results[0], self.new),)
        return results

    def _weight(self, op: Weight) -> Value:
        symbol = op.symbol
        follows = symbol.type.element is self.old and symbol.name not in self.precise
        # A weight that a region reads too stays as the region wants it.
        stays = not follows or symbol.name in self.in_regions
        new = Weight(symbol if stays else WeightSymbol(symbol.name, CastRecipe(symbol.recipe, self.new)))
        new.loc = op.loc
        return self._cast(new.result, self.new) if follows else new.result

    def _operands(self, op: Op) -> list[Value | None]:
        """The operands of `op`; where one that had the old dtype has the new one now, all the others follow."""
        precise = _STAYS_F32.get(type(op), frozenset())
        slots = list(enumerate(op.operands))
        follow = {i for i, v in slots if v is not None and self.before[v].element is self.old}
        follow -= {i for i in follow if operand_name(op, i) in precise}
        changed = any(v is not None and v.type.element is self.new for i, v in slots if i in follow)
        operands: list[Value | None] = []
        for i, value in slots:
            if value is not None and operand_name(op, i) in precise:
                value = self._cast(value, f32)
            elif value is not None and changed and i in follow:
                value = self._cast(value, self.new)
            operands.append(value)
        return operands

    def _attribute(self, value: object) -> object:
        """An attribute with the new dtype for the old; f32 stays, because it is there on purpose."""
        if self.old is f32:
            return value
        if isinstance(value, TensorType):
            return value.with_element(self.new) if value.element is self.old else value
        return self.new if value is self.old else value

    def _cast(self, value: Value, dtype: DType) -> Value:
        if value.type.dtype is dtype:
            return value
        if isinstance(value.op, prim.Constant):
            new = prim.constant(value.op.value, dtype, value.type.shape)
        else:
            new = prim.cast(value, dtype)
        return new
