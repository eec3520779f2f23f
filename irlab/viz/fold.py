"""Repeated layers: which ops of a graph belong to which layer, and which layers are the same but for their weights."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..ir import Graph, Op, Weight

_LAYER = re.compile(r"^(.*?)\.(\d+)(?:\.|$)")


@dataclass
class Folding:
    """`shown[op]` is the op that stands for `op` in a picture; `repeats[path]` says which layers path stands for."""

    shown: dict[Op, Op] = field(default_factory=dict)
    repeats: dict[str, str] = field(default_factory=dict)


def layer_of(op: Op) -> tuple[str, int] | None:
    """("model.layers", 3) for an op of the module path model.layers.3.mlp; None outside numbered layers."""
    match = _LAYER.match(op.loc.path) if op.loc else None
    return (match[1], int(match[2])) if match else None


def _signature(op: Op) -> tuple[object, ...]:
    """What must agree for two ops to look the same; weights count by type, not by name."""
    attributes = () if isinstance(op, Weight) else tuple(map(str, op.attributes.values()))
    return (op.opname, attributes, tuple(result.type for result in op.results))


def fold(graph: Graph) -> Folding:
    """Let each layer be shown by the first of the run of equal layers it belongs to."""
    order = graph.topo()
    layers: dict[tuple[str, int], list[Op]] = {}
    for op in order:
        layer = layer_of(op)
        if layer is not None:
            layers.setdefault(layer, []).append(op)
    folding = Folding({op: op for op in order})
    first: tuple[str, int] | None = None
    last = -1
    for stack, number in sorted(layers):
        ops = layers[stack, number]
        same = first is not None and first[0] == stack and last == number - 1
        if same and first is not None and list(map(_signature, layers[first])) == list(map(_signature, ops)):
            folding.shown.update(zip(ops, layers[first]))
            folding.repeats[f"{stack}.{first[1]}"] = f"{stack} {first[1] + 1}-{number}: same as layer {first[1]}"
        else:
            first = (stack, number)
        last = number
    return folding
