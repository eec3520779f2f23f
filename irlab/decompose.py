"""What an nn op means, as a graph of its own, and a graph with its nn ops replaced by their meaning."""

from __future__ import annotations

from collections.abc import Callable

from .ir import Graph, Op, Value
from .ops.nn import NNOp


def decomposition(op: NNOp) -> Graph:
    """The decomposition of `op` as a graph: an input per operand that is there, an output per result ("0", "1" ...)."""
    graph = Graph()
    operands: list[Value | None] = []
    for index, value in enumerate(op.operands):
        operands.append(None if value is None else graph.input(str(index), value.type))
    rebuilt = op.rebuild(operands)
    assert isinstance(rebuilt, NNOp)
    graph.set_outputs({str(i): value for i, value in enumerate(meaning(rebuilt))})
    return graph


def meaning(op: NNOp) -> tuple[Value, ...]:
    """The decomposition of `op`, one value per result."""
    values = op.decompose()
    return values if isinstance(values, tuple) else (values,)


def expand_nn_ops(graph: Graph, keep: Callable[[Op], bool] = lambda op: False, made_by: str = "decompose") -> int:
    """Replace nn ops, those in regions too, by their decompositions until only those that `keep` accepts are left;
    returns how many were replaced."""
    count = 0
    while True:
        found = [op for cls in list(graph.index) if issubclass(cls, NNOp) for op in graph.find(cls) if not keep(op)]
        for op in found:
            graph.replace(op, *meaning(op), made_by=made_by)
        count += len(found)
        if not found:
            break
    for holder in list(graph.region_ops()):
        count += sum(expand_nn_ops(region, keep, made_by) for region in holder.regions)
    return count
