"""How is control flow said in ONNX? As nodes with subgraphs, which see the values around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from irlab.backends.onnx.emitter import Emitter, Lowering, value_info
from irlab.ir import Graph, Op, Value
from irlab.ops.control import If

if TYPE_CHECKING:
    import onnx


def _branch(graph: Graph, inputs: tuple[Value, ...], e: Emitter, name: str) -> onnx.GraphProto:
    from onnx import helper

    with e.subgraph() as scope:
        for inner, outer in zip(graph.inputs, inputs):
            scope.values[inner] = e[outer]
        e.lower(graph)
        names = e.outputs(graph)
        types = [value.type for value in graph.return_op.values]
        return helper.make_graph(scope.nodes, name, [], [value_info(n, t) for n, t in zip(names, types)])


def _if(op: If, e: Emitter) -> None:
    condition = e[op.condition]
    if op.condition.type.rank:
        condition = e.node("Reshape", condition, e.ints())
    then_ = _branch(op.then_, op.inputs, e, "then")
    else_ = _branch(op.else_, op.inputs, e, "else")
    e.result(op, "If", condition, then_branch=then_, else_branch=else_)


LOWERINGS: Final[dict[type[Op], Lowering]] = {If: _if}
