"""Ops with regions. A region is a graph of its own: what it uses from outside is an explicit operand (weights, which
are symbols and not values, may be named inside)."""

from __future__ import annotations

from ..ir import Graph, Op, Value, expressions
from ..types import TensorType, bool_
from .shapes import require


class If(Op, opname="ctl.if"):
    """One of two regions, chosen by a bool of rank 0. Both take `inputs` and give the same types."""

    condition: Value
    inputs: tuple[Value, ...]
    then_: Graph
    else_: Graph

    def infer(self) -> tuple[TensorType, ...]:
        require(
            self, self.condition.type.dtype is bool_ and self.condition.type.size == 1, "the condition must be one bool"
        )
        given = [v.type for v in self.inputs]
        for region in self.regions:
            require(self, [v.type for v in region.inputs] == given, "a region's inputs differ from the operands")
        then_types, else_types = ([v.type for v in region.outputs.values()] for region in self.regions)
        require(self, then_types == else_types, "the two regions give different types")
        return tuple(then_types)


if_ = expressions(If)
