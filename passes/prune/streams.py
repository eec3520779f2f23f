"""What does a layer do to the residual stream? The value that comes in and the one of the same type that goes out."""

from __future__ import annotations

from dataclasses import dataclass

from irlab.errors import InputError
from irlab.ir import Graph, Op, Value
from irlab.layers import Layer, layer_of, layers


@dataclass(frozen=True)
class Stream:
    """A numbered layer as a step of the residual stream: `given` comes in, `made` goes out."""

    layer: Layer
    number: int
    given: Value
    made: Value

    @property
    def name(self) -> str:
        return self.layer.name


def streams(graph: Graph) -> list[Stream]:
    """The numbered layers of `graph` that hand one value on, in order. Raises InputError for one that is no such step,
    and where there are none."""
    found = []
    for layer in layers(graph):
        place = next((p for p in map(layer_of, layer.ops) if p is not None and f"{p[0]}.{p[1]}" == layer.name), None)
        if place is None:
            continue
        pairs = _pairs(layer)
        if len(pairs) != 1:
            why = "hands on several values" if pairs else "does not hand on what it is given"
            raise InputError(f"{layer.name} {why}: it cannot be left out", "drop layers before passes that join them")
        found.append(Stream(layer, place[1], *pairs[0]))
    if not found:
        raise InputError("drop-layers: the graph has no numbered layers")
    return found


def _pairs(layer: Layer) -> list[tuple[Value, Value]]:
    """What `layer` is given and makes of the same type, where one depends on the other."""
    made = dict.fromkeys([*layer.gives.values(), *layer.outputs.values()])
    inside = set(layer.ops)
    return [
        (before, after)
        for after in made
        for before in layer.reads.values()
        if before.type is after.type and after.type.dtype.is_float and _depends(after, before, inside)
    ]


def _depends(value: Value, on: Value, inside: set[Op]) -> bool:
    stack, seen = [value], set()
    while stack:
        current = stack.pop()
        if current is on:
            return True
        if current.op in inside and current.op not in seen:
            seen.add(current.op)
            stack += [v for v in current.op.operands if v is not None]
    return False


def drop(graph: Graph, dropped: list[Stream]) -> None:
    """Leave layers out of `graph`, in place: what reads what they make reads what they were given."""
    for stream in reversed(dropped):
        graph.replace_uses(stream.made, stream.given)
    graph.erase_dead()
