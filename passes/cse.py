"""The cse pass: an expression that is computed twice is computed once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from irlab import Context, Module, Op, Pass
from irlab.ir import Graph, Return, Weight
from irlab.ops.call import Call


@dataclass(frozen=True)
class CSE(Pass, name="cse"):
    """Merges ops of one class with the same operands and attributes.

        %1 = prim.add(%x, %y)              %1 = prim.add(%x, %y)
        %2 = prim.add(%y, %x)       ->     %3 = prim.mul(%1, %1)
        %3 = prim.mul(%1, %2)

    Commutative operands count in either order; constants and uses of one weight merge like other ops. Calls of opaque
    ATen ops do not (they may be random), nor do ops with regions, but each region is searched on its own.
    """

    def run(self, module: Module, ctx: Context) -> None:
        ctx.note_rewrites({"merge": merge_equal(module.graph)})


def merge_equal(graph: Graph) -> int:
    """Merge equal ops of `graph` and, each on its own, of its regions; returns how many were merged away."""
    first: dict[Hashable, Op] = {}
    merged = 0
    # Producers come before users, so the operands of what is looked at have been merged already.
    for op in graph.topo():
        if op.region_names:
            merged += sum(map(merge_equal, op.regions))
        elif not isinstance(op, Call | Return):
            kept = first.setdefault(_key(op), op)
            if kept is not op:
                graph.replace(op, *kept.results)
                merged += 1
    return merged


def _key(op: Op) -> Hashable:
    """Equal for ops that compute the same."""
    if isinstance(op, Weight):
        return Weight, op.symbol.name
    operands = [None if value is None else id(value) for value in op.operands]
    if type(op).commutative:
        operands.sort(key=str)
    attributes = tuple([_exact(getattr(op, name)) for name in op.attribute_names])
    return type(op), tuple(operands), attributes


def _exact(value: object) -> Hashable:
    """`value` as a key that tells 1 from 1.0 and True, and 0.0 from -0.0, which Python takes for equal."""
    if isinstance(value, tuple):
        return tuple(map(_exact, value))
    if isinstance(value, float):
        return float, value.hex()
    return type(value), value
