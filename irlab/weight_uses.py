"""Who reads a weight, and how is it exchanged for another? Across a graph and its regions, a tied weight as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .ir import Graph, Op, Value, Weight
from .ops import prim
from .ops.nn import Linear, NNOp
from .weights import WeightSymbol


@dataclass
class WeightUses:
    """The uses of one weight: each op that reads it, with the name of the operand (a variadic operand for any of its
    slots), in order of `seq`. More than one use is a tied weight."""

    symbol: WeightSymbol
    users: list[tuple[Op, str]] = field(default_factory=list)

    @property
    def is_matrix(self) -> bool:
        """Whether it is read as the matrix of a product, and in no other way."""
        return bool(self.users) and all(isinstance(op, NNOp) and operand in op.matrices for op, operand in self.users)


def graphs(graph: Graph) -> Iterator[Graph]:
    """`graph` and the regions inside it, outermost first."""
    yield graph
    for op in list(graph.region_ops()):
        for region in op.regions:
            yield from graphs(region)


def weight_uses(graph: Graph) -> dict[str, WeightUses]:
    """The uses of every weight of `graph` and its regions, by name."""
    found: dict[str, WeightUses] = {}
    for each in graphs(graph):
        for weight in each.find(Weight):
            uses = found.setdefault(weight.symbol.name, WeightUses(weight.symbol))
            for user in sorted(weight.result.uses, key=lambda op: op.seq):
                slots = [i for i, value in enumerate(user.operands) if value is weight.result]
                uses.users += [(user, operand_name(user, slot)) for slot in slots]
    return found


def operand_name(op: Op, slot: int) -> str:
    """The declared operand that fills slot `slot` of `op.operands`."""
    return op.operand_names[min(slot, len(op.operand_names) - 1)]


def replace_weights(graph: Graph, symbols: Mapping[str, WeightSymbol]) -> None:
    """Let `graph` and its regions read `symbols[name]` where they read the weight `name`.

    The types of users are not inferred again: exchange a weight for one of another type only where users allow it.
    """
    for each in graphs(graph):
        for weight in each.find(Weight):
            new = symbols.get(weight.symbol.name)
            if new is not None:
                each.replace(weight, prim.weight(new))


def read_together(graph: Graph) -> list[list[str]]:
    """The matrices that read the same value, by name, where several do."""
    readers: dict[Value, dict[str, None]] = {}
    for each in graphs(graph):
        for op in each.ops():
            for linear in _linears(op):
                if isinstance(linear.weight.op, Weight):
                    readers.setdefault(linear.x, {})[linear.weight.op.symbol.name] = None
    return [list(names) for names in readers.values() if len(names) > 1]


def _linears(op: Op) -> list[Linear]:
    """The products that `op` means."""
    if isinstance(op, Linear):
        return [op]
    if not isinstance(op, NNOp) or not op.matrices:
        return []
    meaning = op.decompose()
    found: dict[Op, None] = {}
    pending = list(meaning if isinstance(meaning, tuple) else (meaning,))
    while pending:
        part = pending.pop().op
        if part is not None and part.graph is None and part not in found:
            found[part] = None
            pending += [value for value in part.operands if value is not None]
    return [part for part in found if isinstance(part, Linear)]
