"""What names mean while a graph is read: values by their text, and what the graphs of one text share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..ir import Graph, Loc, Value, Weight
from ..types import TensorType
from ..weights import WeightSymbol
from .signatures import Signature
from .values import ValueReader


class Surroundings:
    """What the graphs of one text share: the reader of values, the weight table, and the pieces read so far."""

    def __init__(self, values: ValueReader, table: dict[str, WeightSymbol]) -> None:
        self.values, self.cursor, self.table = values, values.cursor, table
        # Weights come before all ops, in the order of the table.
        self.seq_of = {token: i - len(table) for i, token in enumerate(table)}
        self.used: set[str] = set()
        self.calls: dict[tuple[str, str, str], tuple[Signature, dict[str, Any], list[TensorType]]] = {}
        self.locs: dict[str, Loc] = {}
        self.checked: set[TensorType] = set()

    def unused(self) -> Iterator[tuple[WeightSymbol, int]]:
        """The weights that no graph reads, with their places."""
        for token, symbol in self.table.items():
            if token not in self.used:
                yield symbol, self.seq_of[token]


class Env(dict[str, "Value | None"]):
    """The values of a graph by their text. Weights and constants come into being when they are first looked up."""

    def __init__(self, graph: Graph, around: Surroundings) -> None:
        super().__init__({"none": None})
        self.graph, self.around = graph, around

    def __missing__(self, token: str) -> Value:
        symbol = self.around.table[token]
        self.around.used.add(token)
        weight = Weight(symbol)
        self.graph.attach(weight, self.around.seq_of[token])
        self[token] = weight.results[0]
        return weight.results[0]
