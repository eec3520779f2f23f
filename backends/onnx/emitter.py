"""What is under construction while a graph becomes ONNX nodes: scopes of nodes, names, stored tensors.

A lowering gets an op and the emitter. `node` adds a node whose output is an intermediate value, `result` one whose
outputs are the op's results. Tensors go to the main graph, where every subgraph sees them; nodes go to the graph that
is open. Names come from the IR (module paths, value names), so that a viewer shows the model's own words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from irlab.backends.onnx import storage
from irlab.backends.onnx.sizes import NodeSizes
from irlab.backends.onnx.storage import ONNX_TYPE, Stored
from irlab.backends.onnx.vocabulary import FAST, Vocabulary
from irlab.errors import LegalityError
from irlab.ir import Graph, Op, Return, Value, Weight
from irlab.types import TensorType
from irlab.weights import WeightSymbol

if TYPE_CHECKING:
    import numpy as np
    import onnx

MICROSOFT: Final = "com.microsoft"
Lowering = Callable[[Any, "Emitter"], None]
"""Emits the nodes of one op and binds its results."""


@dataclass
class Scope:
    """The nodes of one graph or subgraph, and what is computed in it."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    values: dict[Value, str] = field(default_factory=dict)
    memo: dict[tuple[object, ...], str] = field(default_factory=dict)


class Emitter:
    """Collects nodes, tensors and types while lowerings walk a graph."""

    def __init__(
        self, lowerings: Mapping[type[Op], Lowering], accuracy_level: int = 4, vocabulary: Vocabulary = FAST
    ) -> None:
        self.lowerings = lowerings
        self.accuracy_level = accuracy_level
        self.vocabulary = vocabulary
        self.tensors: dict[str, Stored] = {}
        self.functions: dict[str, onnx.FunctionProto] = {}
        self.opsets: dict[str, int] = {"": vocabulary.opset}
        self.types: dict[str, TensorType] = {}
        self.sizes = NodeSizes(self)
        self._scopes = [Scope()]
        self._names: set[str] = set()
        self._memo_tensors: dict[tuple[object, ...], str] = {}
        self._path = ""

    # Names

    def unique(self, name: str) -> str:
        """`name`, or with a number after it where it is taken."""
        candidate, count = name, 1
        while candidate in self._names:
            candidate, count = f"{name}_{count}", count + 1
        self._names.add(candidate)
        return candidate

    def _node_name(self, op_type: str) -> str:
        return self.unique(f"{self._path}/{op_type}")

    # Values

    def __getitem__(self, value: Value) -> str:
        """The ONNX name of a value that has been lowered."""
        for scope in reversed(self._scopes):
            if value in scope.values:
                return scope.values[value]
        if value.op is not None and isinstance(value.op, Weight):
            return self.weight(value.op.symbol)
        raise LegalityError(f"a value of {value.op.opname if value.op else 'another graph'} is read before it is made")

    def bind(self, value: Value, name: str) -> None:
        """Let `value` be the ONNX value `name`."""
        self._scopes[-1].values[value] = name
        self.types.setdefault(name, value.type)

    def constant(self, value: Value) -> np.ndarray | None:
        """The numbers of `value` where it is a prim.constant, else None."""
        from irlab.ops import prim
        from irlab.weights import numpy_dtype

        if isinstance(value.op, prim.Constant) and value.type.is_static:
            import numpy as np

            return np.full(value.type.shape, value.op.value, numpy_dtype(value.type.dtype))  # type: ignore[arg-type]
        return None

    # Tensors

    def tensor(self, stored: Stored) -> str:
        """Store a tensor in the main graph."""
        self._names.add(stored.name)
        self.tensors[stored.name] = stored
        return stored.name

    def once(self, key: tuple[object, ...], make: Callable[[], Stored]) -> str:
        """The tensor known by `key`, stored when first asked for."""
        if key not in self._memo_tensors:
            self._memo_tensors[key] = self.tensor(make())
        return self._memo_tensors[key]

    def array(self, values: np.ndarray, name: str = "") -> str:
        """A small tensor of these numbers; equal ones are stored once."""
        key = ("array", values.dtype.str, values.dtype.name, values.shape, values.tobytes())
        label = name or "const_" + re.sub(r"[^\w.+-]+", "_", str(values.tolist()))[:40].strip("_")
        return self.once(key, lambda: storage.array(self.unique(label), values))

    def ints(self, *values: int) -> str:
        """An i64 vector."""
        import numpy as np

        return self.array(np.array(values, np.int64))

    def scalar(self, value: float | int | bool, like: TensorType) -> str:
        """A rank-0 tensor in the dtype of `like`."""
        import numpy as np

        from irlab.weights import numpy_dtype

        return self.array(np.array(value, numpy_dtype(like.dtype)))

    def weight(self, symbol: WeightSymbol) -> str:
        """The weight as plain numbers in its own shape; an encoded one is stored as codes and decoded by a node."""
        if symbol.type.encoding is not None:
            from irlab.backends.onnx.codes import decoded

            return decoded(self, symbol)
        return self.once((symbol.name, "plain"), lambda: storage.plain(self.unique(symbol.name), symbol))

    # Nodes

    def node(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one intermediate output; gives its name."""
        return self.multiple(op_type, *inputs, domain=domain, **attributes)[0]

    def multiple(self, op_type: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> list[str]:
        """As `node`, for any number of outputs."""
        name = self._node_name(op_type)
        names = [self.unique(f"{name}_output_{i}" if i else f"{name}_output") for i in range(outputs)]
        self._append(op_type, inputs, names, name, domain, attributes)
        return names

    def result(self, op: Op, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> None:
        """Add a node whose outputs are the results of `op`."""
        name = self._node_name(op_type)
        names = []
        for i, value in enumerate(op.results):
            label = self.unique(value.name or (f"{name}_output_{i}" if i else f"{name}_output"))
            self.bind(value, label)
            names.append(label)
        self._append(op_type, inputs, names, name, domain, attributes)

    def copy(self, value: Value, name: str) -> None:
        """Add an Identity of `value` under exactly this name."""
        self._append("Identity", [self[value]], [name], self._node_name("Identity"), "", {})

    def memo(self, key: tuple[object, ...], make: Callable[[], str]) -> str:
        """The value known by `key` in this graph or one around it, computed when first asked for."""
        for scope in reversed(self._scopes):
            if key in scope.memo:
                return scope.memo[key]
        made = self._scopes[-1].memo[key] = make()
        return made

    def _append(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str,
        domain: str,
        attributes: dict[str, Any],
    ) -> None:
        from onnx import helper

        trimmed = list(inputs)
        while trimmed and not trimmed[-1]:
            trimmed.pop()
        self.opsets.setdefault(domain, 1)
        node = helper.make_node(op_type, trimmed, list(outputs), name=name, domain=domain, **attributes)
        self._scopes[-1].nodes.append(node)

    # Graphs

    def lower(self, graph: Graph) -> None:
        """Emit the ops of `graph` into the open scope; its inputs are bound already."""
        from irlab.backends.onnx.names import op_label

        for op in graph.topo():
            if isinstance(op, Return | Weight):
                continue
            lowering = self.lowerings.get(type(op))
            if lowering is None:
                raise LegalityError(f"{op.opname} at {op.loc.path if op.loc else '?'} has no ONNX form")
            outer, self._path = self._path, op_label(op)
            lowering(op, self)
            self._path = outer
            self.sizes.found_in(op)

    def outputs(self, graph: Graph) -> list[str]:
        """The names of a graph's outputs in the open scope; one that is made elsewhere passes through Identity."""
        made = {name for node in self.nodes for name in node.output}
        names = []
        for value in graph.return_op.values:
            name = self[value]
            if name not in made or name in names:
                name = self.node("Identity", name)
            names.append(name)
        return names

    @contextmanager
    def subgraph(self) -> Iterator[Scope]:
        """Open a scope whose nodes become a subgraph."""
        self._scopes.append(Scope())
        try:
            yield self._scopes[-1]
        finally:
            self._scopes.pop()

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return self._scopes[-1].nodes


def value_info(name: str, type: TensorType) -> onnx.ValueInfoProto:
    """The ONNX type of a value; symbolic sizes keep their text."""
    from onnx import helper

    shape = [d if isinstance(d, int) else str(d) for d in type.shape]
    return helper.make_tensor_value_info(name, ONNX_TYPE[type.dtype], shape)
