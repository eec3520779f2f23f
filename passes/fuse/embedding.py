"""Embedding tables read row by row."""

from __future__ import annotations

from irlab.ir import Value, Weight
from irlab.ops import nn
from irlab.pattern import Pattern, Variable, p
from irlab.rewrite import Match, Rule


class FuseEmbedding(Rule):
    """gather(@table, ids) along the rows  ->  nn.embedding(ids, @table)."""

    def pattern(self, table: Variable, ids: Variable, axis: Variable) -> Pattern:
        return p.gather(table, ids, axis=axis)

    def where(self, m: Match) -> bool | str:
        if not isinstance(m.table.op, Weight) or m.table.type.rank != 2 or not m.table.type.dtype.is_float:
            return "the table is no matrix of weights"
        return m.axis == -2 or "it gathers columns"

    def rewrite(self, m: Match) -> Value:
        return nn.embedding(m.ids, m.table)
