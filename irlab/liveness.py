"""How much memory do the values of a graph take at once? Liveness over the topological order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .cost import Sizes, at
from .dims import Size
from .ir import Graph, Op, Value
from .ops import prim
from .types import TensorType

VIEWS: Final = (prim.Reshape,)
"""Ops whose result is the memory of their operand under another shape, in every runtime."""


@dataclass(frozen=True)
class Peak:
    """Where the values between ops take the most memory: while `op` runs. `bytes` at the sizes that were asked for,
    `formula` the same as a polynomial of the symbolic sizes."""

    bytes: int
    formula: Size
    op: Op


def peak_memory(graph: Graph, sizes: Sizes) -> Peak | None:
    """The peak of the values that ops make, from when they are made until they are last read (results of the graph, to
    the end), run in the order of `topo()`; None for a graph that computes nothing.

    Weights and inputs are not counted: both are there before and after. Nor is what a kernel needs inside an op.
    """
    order = [op for op in graph.topo() if op.operands]
    owner = _owners(order)
    last_use = {}
    for number, op in enumerate(order):
        for value in op.operands:
            if value in owner:
                last_use[owner[value]] = number
    live: dict[Value, int] = {}
    peak: tuple[int, Op, list[Value], Peak | None] | None = None
    total = 0
    bytes_of: dict[TensorType, int] = {}
    for number, op in enumerate(order):
        for value in op.results:
            if owner.get(value) is value:
                if value.type not in bytes_of:
                    bytes_of[value.type] = at(value.type.size_bytes, sizes)
                live[value] = bytes_of[value.type]
                total += live[value]
        peaks = (peak_memory(region, sizes) for region in op.regions)
        inner = max((p for p in peaks if p), key=lambda p: p.bytes, default=None)
        now = total + (inner.bytes if inner else 0)
        if op.results and (peak is None or now > peak[0]):
            peak = (now, op, list(live), inner)
        for value in {owner[v] for v in (*op.operands, *op.results) if v in owner}:
            if last_use.get(value, number) == number:
                total -= live.pop(value, 0)
    if peak is None:
        return None
    most, op, values, inner = peak
    formula: Size = inner.formula if inner else 0
    for value in values:
        formula = formula + value.type.size_bytes
    return Peak(most, formula, op)


def _owners(order: list[Op]) -> Mapping[Value | None, Value]:
    """For each value that an op of `order` makes, the value whose memory it is: itself, unless it is a view."""
    owner: dict[Value | None, Value] = {}
    for op in order:
        for value in op.results:
            source = op.operands[0] if isinstance(op, VIEWS) else None
            if source is None:
                owner[value] = value
            elif source in owner:
                owner[value] = owner[source]
    return owner
