"""What an nn op means, as a graph of its own: its decomposition over fresh inputs."""

from __future__ import annotations

from ..ir import Graph, Value
from ..ops.nn import NNOp


def decomposition(op: NNOp) -> Graph:
    """The decomposition of `op` as a graph: an input per operand that is there ("0", "1" ... by operand), an output per
    result ("0", "1" ...)."""
    graph = Graph()
    operands: list[Value | None] = []
    for index, value in enumerate(op.operands):
        operands.append(None if value is None else graph.input(str(index), value.type))
    rebuilt = op.rebuild(operands)
    assert isinstance(rebuilt, NNOp)
    values = rebuilt.decompose()
    graph.set_outputs({str(i): value for i, value in enumerate(values if isinstance(values, tuple) else (values,))})
    return graph
