"""A graph with what belongs to it, and a builder of such modules in Python."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..types import TensorType
from .graph import Graph
from .op import Loc, Value, Weight

if TYPE_CHECKING:
    from ..weights import WeightSymbol


class Module:
    """A graph with what belongs to it: a name, metadata, and the directory that its weight files are relative to.

    `metadata` holds what outputs must carry along and no op expresses: "config" (the HF config as a dict),
    "tokenizer" (a directory), "licence", "base_model". Values are JSON-like.
    """

    def __init__(self, graph: Graph, name: str = "module", metadata: dict[str, Any] | None = None) -> None:
        self.graph = graph
        self.name = name
        self.metadata: dict[str, Any] = metadata if metadata is not None else {}
        self.directory: Path | None = None

    @property
    def weights(self) -> dict[str, WeightSymbol]:
        """The weights in use, by name; derived from the graph, so that an unused weight cannot linger."""
        return self.graph.weights()

    def clone(self) -> Module:
        new = Module(self.graph.clone(), self.name, copy.deepcopy(self.metadata))
        new.directory = self.directory
        return new

    def __str__(self) -> str:
        from ..text import print_module

        return print_module(self)


class GraphBuilder:
    """Builds a module in Python.

    >>> b = GraphBuilder("double")
    >>> x = b.input("x", "f32", ("batch", 4))
    >>> b.output(y=prim.add(x, x))
    >>> module = b.module()
    """

    def __init__(self, name: str = "module") -> None:
        self._module = Module(Graph(), name)
        self._symbols: dict[str, Value] = {}

    def input(self, name: str, element: str, shape: Iterable[int | str]) -> Value:
        """An input; strings in `shape` are symbolic sizes ("batch", "seq + 1")."""
        return self._module.graph.input(name, _tensor_type(element, shape))

    def weight(self, symbol: WeightSymbol) -> Value:
        """The value of a weight; one value per symbol, so a tied weight is one value with several uses."""
        if symbol.name not in self._symbols:
            self._symbols[symbol.name] = self._module.graph.add(Weight(symbol)).result
        return self._symbols[symbol.name]

    def random_weight(self, name: str, element: str, shape: Iterable[int], seed: int = 0) -> Value:
        """A weight of small normal numbers, made on demand from `seed`: for tests and experiments."""
        from ..weights import Random, WeightSymbol

        return self.weight(WeightSymbol(name, Random(_tensor_type(element, shape), seed)))

    def add(self, value: Value, path: str = "") -> Value:
        """Attach an expression with `path` as its location, to fix its place and origin; returns it."""
        if value.op is not None and value.op.graph is None:
            graph = self._module.graph
            graph._clock += 1
            graph.attach(value.op, graph._clock, Loc.at(path) if path else None)
        return value

    def output(self, **values: Value) -> None:
        """Set the outputs."""
        self._module.graph.set_outputs(values)

    def module(self) -> Module:
        """The module built so far."""
        return self._module


def _tensor_type(element: str, shape: Iterable[int | str]) -> TensorType:
    from ..dims import parse
    from ..types import tensor

    return tensor(element, tuple(parse(d) if isinstance(d, str) else d for d in shape))
