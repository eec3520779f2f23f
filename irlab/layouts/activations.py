"""How does a graph say that activations are rounded, and how does a checkpoint? As ops, and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import LegalityError
from ..ir import Graph, Op, Value, Weight
from ..low_rank import spell_out
from ..ops import nn
from ..weight_uses import graphs
from .base import Activation, activation_of


@dataclass(frozen=True)
class Rounded:
    """How the matrix of a layer wants what it reads rounded; `scale` is 0 where it is found when the model runs."""

    activation: Activation
    scale: float


def take_roundings(graph: Graph) -> dict[str, Rounded]:
    """Leave out the roundings of `graph`; returns them by the names of the matrices that read them. Raises
    LegalityError, naming the place, for what no layer of a checkpoint can say."""
    found: dict[str, Rounded] = {}
    for each in graphs(graph):
        for cls in (nn.QuantizeActivation, nn.QuantizeActivationFloat):
            for op in each.find(cls):
                rounded = _told(op)
                for user in op.result.uses:
                    name = _matrix(user, op)
                    if found.setdefault(name, rounded) != rounded:
                        raise _refused(op, f"'{name}' reads what is rounded otherwise elsewhere")
                each.replace(op, op.x)
    return found


def round_inputs(graph: Graph, rounded: Mapping[str, Rounded]) -> None:
    """The inverse of `take_roundings`. What several matrices read is rounded once, if it is for all of them alike."""
    spell_out(graph, rounded)
    made: dict[tuple[Value, Rounded], Value] = {}
    for linear in graph.find(nn.Linear):
        found = rounded.get(linear.weight.op.symbol.name) if isinstance(linear.weight.op, Weight) else None
        if found is not None:
            key = linear.x, found
            if key not in made:
                made[key] = _rounding(*key)
            graph.set_operand(linear, 0, made[key])


def _told(op: nn.ActivationRounding) -> Rounded:
    activation = activation_of(op)
    if activation is None:
        raise _refused(op, "checkpoints have symmetric activations of 8 bits, FP8 and NVFP4", "sym=true")
    return Rounded(activation, op.scale)  # type: ignore[attr-defined]


def _matrix(user: Op, op: nn.ActivationRounding) -> str:
    if isinstance(user, nn.Linear) and user.x is op.results[0] and isinstance(user.weight.op, Weight):
        symbol = user.weight.op.symbol
        if symbol.type.encoding is not None:
            return symbol.name
        raise _refused(
            op, f"'{symbol.name}' is not encoded, and loaders round for encoded matrices alone", "weights=same"
        )
    raise _refused(op, f"{user.opname} reads it, and loaders round for the matrices of linear layers alone")


def _refused(op: Op, reason: str, hint: str = "") -> LegalityError:
    where = op.loc.path if op.loc and op.loc.path else "the graph"
    return LegalityError(f"hf: {op.opname} in {where}: {reason}", f"quantize-activations{{{hint}}}" if hint else "")


def _rounding(x: Value, rounded: Rounded) -> Value:
    activation, scale = rounded.activation, rounded.scale
    if activation.element == "int8":
        return nn.quantize_activation(x, per=activation.per, scale=scale)
    return nn.quantize_activation_float(x, activation.element, activation.per, scale)
