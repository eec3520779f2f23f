"""Which layers does a graph consist of, and what flows between them? Each layer can be run by itself.

Layers are told by the numbers in module paths (model.layers.3.mlp). What lies before the first and after the last
one is a piece of its own; a graph without numbered paths is one piece.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .extract import extract
from .ir import Graph, Op, Return, Value, Weight
from .ops.literals import Constant, Iota
from .weights import WeightSymbol

_NUMBERED: Final = re.compile(r"^(.*?)\.(\d+)(?:\.|$)")

_SOURCES: Final = (Weight, Constant, Iota)
"""Ops that each layer has its own copies of: nothing needs to flow for them."""


def layer_of(op: Op) -> tuple[str, int] | None:
    """("model.layers", 3) for an op of the module path model.layers.3.mlp; None outside numbered layers."""
    match = _NUMBERED.match(op.loc.path) if op.loc else None
    return (match[1], int(match[2])) if match else None


def layer_name(path: str) -> str:
    """ "model.layers.3" for a module path or weight name inside of it; empty outside numbered layers."""
    match = _NUMBERED.match(path)
    return f"{match[1]}.{match[2]}" if match else ""


@dataclass(frozen=True)
class Layer:
    """A run of ops between values that cross. `reads`: what comes from earlier layers and from the graph's inputs,
    `gives`: what later layers read, `outputs`: what the graph returns; all by name.

    Names of crossing values stay the same when ops are rewritten without a change of what crosses: they count the
    values that a layer gives, in order of `seq`, which replacements inherit.
    """

    index: int
    name: str
    ops: tuple[Op, ...]
    reads: Mapping[str, Value]
    gives: Mapping[str, Value]
    outputs: Mapping[str, Value]

    @property
    def item(self) -> str:
        """The name of what is kept of the layer, in the order of layers."""
        return f"layer-{self.index:04d}"

    @property
    def whole(self) -> Graph:
        """The graph that the layer is a part of."""
        graph = self.ops[0].graph
        assert graph is not None
        return graph

    def graph(self, outputs: Mapping[str, Value] | None = None) -> Graph:
        """A copy of the layer as a graph of its own, from `reads` to `outputs` (what it gives, by default)."""
        return extract(self.gives if outputs is None else outputs, {value: name for name, value in self.reads.items()})

    @property
    def weights(self) -> dict[str, WeightSymbol]:
        """The weights that the layer reads now, by name, in order."""
        values = [v for op in self.ops for v in op.operands if v is not None]
        return {v.op.symbol.name: v.op.symbol for v in values if isinstance(v.op, Weight)}


def layers(graph: Graph) -> list[Layer]:
    """The layers of `graph` in the order in which they run; pieces without ops are left out."""
    ops = [op for op in graph.topo() if not isinstance(op, (*_SOURCES, Return))]
    names, stages = _stages(ops)
    members: list[list[Op]] = [[] for _ in names]
    for op in ops:
        members[stages[op]].append(op)
    used = [i for i, piece in enumerate(members) if piece]
    gives = {i: _given(members[i], stages) for i in used}
    named: dict[Value, str] = {value: value.name or "" for value in graph.inputs}
    for i in used:
        named.update({value: f"{names[i]}:{k}" for k, value in enumerate(gives[i])})
    returned = graph.outputs
    found = []
    for index, i in enumerate(used):
        inside = set(members[i])
        outputs = {name: value for name, value in returned.items() if value.op in inside}
        reads = _read(members[i], inside)
        found.append(
            Layer(
                index,
                names[i],
                tuple(members[i]),
                {named[value]: value for value in reads},
                {named[value]: value for value in gives[i]},
                outputs,
            )
        )
    return found


def _stages(ops: Sequence[Op]) -> tuple[list[str], dict[Op, int]]:
    """The names of all pieces in order, and the piece that each op belongs to: its own layer, or that of the latest
    value it reads, whichever comes later. What has no number and comes after all layers is the last piece."""
    numbered = {op: layer_of(op) for op in ops}
    order = list(dict.fromkeys(layer for layer in numbered.values() if layer is not None))
    place = {layer: i + 1 for i, layer in enumerate(order)}
    last = len(order) + 1
    needed = _before_some_layer(ops, numbered)
    stages: dict[Op, int] = {}
    for op in ops:
        layer = numbered[op]
        own = place[layer] if layer is not None else 0
        stage = max([own, *(stages[v.op] for v in op.operands if v is not None and v.op in stages)])
        if layer is None and op not in needed and stage > 0:
            stage = last
        stages[op] = stage
    return ["before" if order else "all", *(f"{stack}.{number}" for stack, number in order), "after"], stages


def _before_some_layer(ops: Sequence[Op], numbered: Mapping[Op, tuple[str, int] | None]) -> set[Op]:
    """The ops that an op with a layer number depends on."""
    needed: set[Op] = set()
    for op in reversed(ops):
        if numbered[op] is not None or op in needed:
            needed.update(v.op for v in op.operands if v is not None and v.op is not None)
    return needed


def _given(piece: Sequence[Op], stages: Mapping[Op, int]) -> list[Value]:
    """The values of `piece` that later pieces read, in an order that rewriting keeps."""
    crossing = [
        value
        for op in sorted(piece, key=lambda op: op.seq)
        for value in op.results
        if any(stages.get(user, -1) > stages[op] for user in value.uses)
    ]
    return crossing


def _read(piece: Sequence[Op], inside: set[Op]) -> list[Value]:
    """What `piece` reads from elsewhere, in order of first use."""
    values = [v for op in piece for v in op.operands if v is not None]
    return list(dict.fromkeys(v for v in values if v.op is None or not (v.op in inside or isinstance(v.op, _SOURCES))))
