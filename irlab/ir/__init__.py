"""The IR itself: values, ops, graphs, modules. SSA and purely functional.

op.py       Value, Op, Loc; Return and Weight       graph.py    Graph
                                                    module.py   Module, GraphBuilder
"""

from __future__ import annotations

from .graph import Graph
from .module import GraphBuilder, Module
from .op import UNKNOWN_LOC, Loc, Op, Return, Value, Weight, expression, expressions, path_of, place_of

__all__ = [
    "UNKNOWN_LOC",
    "Graph",
    "GraphBuilder",
    "Loc",
    "Module",
    "Op",
    "Return",
    "Value",
    "Weight",
    "expression",
    "expressions",
    "path_of",
    "place_of",
]
