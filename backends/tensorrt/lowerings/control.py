"""How is control flow said in TensorRT? As an IIfConditional, whose branches run lazily."""

from __future__ import annotations

from typing import Final

from irlab.backends.tensorrt.emitter import Emitter, Lowering
from irlab.backends.tensorrt.library import ITensor
from irlab.ir import Graph, Op
from irlab.ops.control import If


def _if(op: If, e: Emitter) -> None:
    condition = e[op.condition]
    if op.condition.type.rank:
        condition = e.tensor("squeeze", condition, e.ints(*range(op.condition.type.rank)))
    conditional = e.network.add_if_conditional()
    e.named(conditional.set_condition(condition), "condition")
    branches = [_branch(op, region, conditional, e) for region in op.regions]
    for value, *tensors in zip(op.results, *branches):
        layer = conditional.add_output(*tensors)
        if layer is None:
            raise e.refused("if_conditional")
        e.named(layer, "conditional_output")
        e.bind(value, layer.get_output(0))


def _branch(op: If, region: Graph, conditional: object, e: Emitter) -> list[ITensor]:
    with e.branch(conditional) as scope:
        outer = dict(zip(region.inputs, op.inputs))
        for inner, value in outer.items():
            scope.values[inner] = e[value]
        e.lower(region)
        passed = {e[inner].name for inner in region.inputs}
        # What a branch hands on must be made in it.
        return [
            e.tensor("identity", t) if t.name in passed or _is_constant(t, e) else t
            for t in (e[value] for value in region.return_op.values)
        ]


def _is_constant(tensor: ITensor, e: Emitter) -> bool:
    return tensor.name.removesuffix("_output") in e.weight_arrays


LOWERINGS: Final[dict[type[Op], Lowering]] = {If: _if}
