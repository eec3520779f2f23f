"""A graph with some of its ops only: what stands in for the values of those that are gone?

Either a new input, which cuts off all that the value was computed from; or an operand of the op that made it, if one
has the same type, so that what lies before and behind stays connected.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import count

from ..ir import Graph, Op, Return, Value
from ..ops.literals import constant
from ..text.printer import is_inline


def movable(graph: Graph) -> list[Op]:
    """The ops that can be left out, producers first; weights and constants follow their users."""
    return [op for op in graph.topo() if not isinstance(op, Return) and not is_inline(op)]


def with_ops(
    graph: Graph, kept: Collection[Op], *, bypass: bool, regions: Mapping[Graph, Graph] | None = None
) -> Graph:
    """A copy of `graph` with the `kept` ops. Outputs are those of its outputs that are still computed, and what is
    computed and read by nothing. `bypass`: operands stand in for what is gone rather than new inputs."""
    piece = _Piece(graph, set(kept), bypass, regions or {})
    values = {name: piece.copies[old] for name, old in graph.outputs.items() if old in piece.made}
    named = set(values.values())
    names = (name for i in count() if (name := f"out{i}") not in graph.outputs)
    for new in piece.made.values():
        assert new.op is not None
        if not any(result.uses or result in named for result in new.op.results):
            values[next(names)] = new
    piece.copy.set_outputs(values)
    piece.copy.erase_dead()
    return piece.copy


def region_with_ops(region: Graph, kept: Collection[Op]) -> Graph:
    """A copy of a region with the `kept` ops: its inputs and outputs stay, and zeros stand in where nothing else has
    the type."""
    piece = _Piece(region, set(kept), True, {}, isolated=True)
    piece.copy.set_outputs({name: piece.value(old) for name, old in region.outputs.items()})
    piece.copy.erase_dead()
    return piece.copy


class _Piece:
    """A copy in the making. `copies` maps values of the old graph to those of the new, `made` those that kept ops
    compute."""

    def __init__(
        self, graph: Graph, kept: set[Op], bypass: bool, regions: Mapping[Graph, Graph], isolated: bool = False
    ) -> None:
        self.kept, self.bypass, self.regions, self.isolated = kept, bypass, regions, isolated
        self.copy = Graph()
        self.copies: dict[Value, Value] = {}
        self.made: dict[Value, Value] = {}
        self.taken = {value.name or "" for value in graph.inputs}
        needed = {value for op in kept for value in op.operands}
        for value in graph.inputs:
            # Inputs that nothing reads go, but those of a region belong to the op that holds it.
            if isolated or value in needed or bypass:
                self.copies[value] = self.copy.input(value.name or "", value.type)
        for op in graph.topo():
            if op in kept:
                self._copy(op)
        if not isolated:
            self.copy.inputs = [value for value in self.copy.inputs if value.uses]

    def value(self, old: Value) -> Value:
        """What `old` is in the copy."""
        if old not in self.copies:
            self.copies[old] = self._stand_in(old)
        return self.copies[old]

    def _copy(self, op: Op) -> None:
        regions = {name: self._region(getattr(op, name)) for name in op.region_names}
        new = op.rebuild([None if value is None else self.value(value) for value in op.operands], **regions)
        self.copy.attach(new, op.seq)
        for old, copied in zip(op.results, new.results):
            copied.name = old.name
            self.copies[old] = self.made[old] = copied

    def _region(self, region: Graph) -> Graph:
        return self.regions.get(region) or region.clone()

    def _stand_in(self, old: Value) -> Value:
        op = old.op
        if op is not None and is_inline(op):
            new = op.rebuild(())
            self.copy.attach(new, op.seq)
            return new.result
        if self.bypass:
            before = next((self.copies[v] for v in _before(old) if v in self.copies), None)
            if before is not None:
                return before
        return self._zeros(old) if self.isolated else self._input(old)

    def _zeros(self, old: Value) -> Value:
        alike = next((value for value in self.copy.inputs if value.type is old.type), None)
        if alike is None:
            alike = constant(0, old.type.dtype, old.type.shape)
            assert alike.op is not None
            self.copy.attach(alike.op, 0)
        return alike

    def _input(self, old: Value) -> Value:
        name = next(name for i in count() if (name := f"in{i}") not in self.taken)
        self.taken.add(name)
        return self.copy.input(name, old.type)


def _before(value: Value) -> Iterator[Value]:
    """The values of the same type that `value` is computed from, through ops that keep the type, nearest first."""
    current: Value | None = value
    while current is not None and current.op is not None:
        current = next((v for v in current.op.operands if v is not None and v.type is value.type), None)
        if current is not None:
            yield current
