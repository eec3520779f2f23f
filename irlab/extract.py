"""A piece of a graph as a graph of its own: what some values depend on, cut where the caller says."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import IRError
from .ir import Graph, Op, Value


def extract(outputs: Mapping[str, Value], inputs: Mapping[Value, str]) -> Graph:
    """A copy of the expressions `outputs` over the values `inputs`, which become inputs of those names.

    Attached and detached ops are copied alike. Raises IRError for a graph input on the way that `inputs` does not name.
    """
    graph = Graph()
    copies: dict[Value, Value] = {value: graph.input(name, value.type) for value, name in inputs.items()}
    stack = list(outputs.values())[::-1]
    while stack:
        value = stack[-1]
        op = value.op
        if value in copies:
            stack.pop()
            continue
        if op is None:
            raise IRError(f"the piece depends on the graph input %{value.name}")
        missing = [v for v in op.operands if v is not None and v not in copies]
        if missing:
            stack.extend(reversed(missing))
            continue
        stack.pop()
        copies.update(zip(op.results, _copy(op, copies).results))
    graph.set_outputs({name: copies[value] for name, value in outputs.items()})
    return graph


def _copy(op: Op, copies: Mapping[Value, Value]) -> Op:
    regions = {name: getattr(op, name).clone() for name in op.region_names}
    return op.rebuild([None if value is None else copies[value] for value in op.operands], **regions)
