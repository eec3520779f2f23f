"""How does a graph of any stage read in Netron? As an ONNX model of irlab's own ops, to look at and not to run.

Ops stand in custom domains ("irlab.nn", "irlab.prim", ...) under their own names, with their attributes, their types as
value infos, and where they came from as metadata. Weights are initialisers without data: names, types and encodings.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ..dims import Dim
from ..ir import Graph, Module, Op, Return, Value, Weight, path_of
from ..ops import prim
from ..text.attributes import value_text
from ..types import TensorType
from ..weight_uses import graphs, operand_name
from ..weights.recipe import numpy_dtype

if TYPE_CHECKING:
    import onnx

IR_VERSION: Final = 10
"""The first version in which nodes and tensors carry metadata."""
_MAX_TEXT: Final = 4_000


def onnx_model(module: Module) -> onnx.ModelProto:
    """The model that shows `module`. Regions become subgraphs."""
    from onnx import helper

    classes = {type(op) for graph in graphs(module.graph) for op in graph.ops()} - {Return, Weight}
    domains = {_domain_and_type(cls)[0] for cls in classes}
    model: onnx.ModelProto = helper.make_model(
        _Writer("").graph(module.graph, module.name),
        ir_version=IR_VERSION,
        producer_name="irlab",
        doc_string="A picture of a module in the middle of compilation. It does not run.",
        opset_imports=[helper.make_opsetid("", 23), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))],
        functions=[_signature(cls) for cls in sorted(classes, key=lambda cls: cls.opname)],
    )
    for key, value in module.metadata.items():
        text = value if isinstance(value, str) else value_text(value)
        model.metadata_props.add(key=key, value=text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + " ...")
    return model


def _signature(cls: type[Op]) -> onnx.FunctionProto:
    """A function without a body: what tells a reader the names of operands, and what the op means."""
    from onnx import helper

    domain, kind = _domain_and_type(cls)
    imports = [helper.make_opsetid(domain, 1)]
    names = list(cls.operand_names), ["result"]
    made: onnx.FunctionProto = helper.make_function(
        domain, kind, *names, [], imports, list(cls.attribute_names), doc_string=inspect.cleandoc(cls.__doc__ or "")
    )
    return made


class _Writer:
    """Writes one graph; `prefix` keeps the names of a region apart from those around it."""

    def __init__(self, prefix: str) -> None:
        from onnx import helper

        self.helper: Any = helper
        self.prefix = prefix
        self.names: dict[Value, str] = {}
        self.taken: set[str] = set()

    def graph(self, graph: Graph, name: str) -> onnx.GraphProto:
        order = graph.topo()
        returned = {value: name for name, value in reversed(graph.outputs.items()) if value.op is not None}
        inputs = [self._typed(self._name(value, value.name or ""), value.type) for value in graph.inputs]
        # What the graph returns keeps its name, whatever else is called so.
        self.taken.update(self.prefix + name for name in returned.values())
        nodes, weights, values = [], [], []
        for number, op in enumerate(order):
            if isinstance(op, Return):
                continue
            for result in op.results:
                if result in returned and not isinstance(op, Weight):
                    self.names[result] = self.prefix + returned[result]
                else:
                    self._name(result, op.symbol.name if isinstance(op, Weight) else f"{op.opname}:{number}")
            if isinstance(op, Weight):
                weights.append(self._weight(op))
            elif isinstance(op, prim.Constant) and op.type.rank == 0:
                weights.append(self._scalar(op))
            else:
                nodes.append(self._node(op, number))
                values += [self._typed(self.names[v], v.type) for v in op.results if v not in returned]
        outputs = []
        for output, value in graph.outputs.items():
            if self.names[value] != self.prefix + output:
                # A weight, an input, or a value returned twice: no name of its own to go by.
                nodes.append(self.helper.make_node("Identity", [self.names[value]], [self.prefix + output]))
            outputs.append(self._typed(self.prefix + output, value.type))
        made: onnx.GraphProto = self.helper.make_graph(
            nodes, name, inputs, outputs, initializer=weights, value_info=values
        )
        return made

    def _name(self, value: Value, wanted: str) -> str:
        name, again = self.prefix + wanted, 0
        while name in self.taken:
            again += 1
            name = f"{self.prefix}{wanted}.{again}"
        self.taken.add(name)
        self.names[value] = name
        return name

    def _node(self, op: Op, number: int) -> onnx.NodeProto:
        domain, kind = _domain_and_type(type(op))
        path = path_of(op)
        inputs = ["" if value is None else self.names[value] for value in op.operands]
        node: onnx.NodeProto = self.helper.make_node(
            kind,
            inputs,
            [self.names[value] for value in op.results],
            name=f"{self.prefix}{path or '-'}/{op.opname}:{number}",
            domain=domain,
        )
        for name in op.attribute_names:
            attribute = self._attribute(name, getattr(op, name))
            if attribute is not None:
                node.attribute.append(attribute)
        for slot, value in enumerate(op.operands):
            if value is not None and value.type.encoding is not None:
                name = f"{operand_name(op, slot)}_encoding"
                node.attribute.append(self.helper.make_attribute(name, str(value.type.element)))
        for name, region in zip(op.region_names, op.regions):
            inner = _Writer(f"{self.prefix}{op.opname}:{number}/{name}/").graph(region, name.rstrip("_"))
            node.attribute.append(self.helper.make_attribute(name.rstrip("_"), inner))
        for key, text in _origin(op):
            node.metadata_props.add(key=key, value=text)
        return node

    def _attribute(self, name: str, value: object) -> onnx.AttributeProto | None:
        if value is None:
            return None
        if isinstance(value, bool):
            value = int(value)
        elif isinstance(value, tuple) and value and all(type(item) is int for item in value):
            value = list(value)
        elif not isinstance(value, int | float | str):
            value = value_text(value)
        made: onnx.AttributeProto = self.helper.make_attribute(name, value)
        return made

    def _typed(self, name: str, type: TensorType) -> onnx.ValueInfoProto:
        # A size that is a polynomial is still a name to ONNX.
        shape = [str(size) if isinstance(size, Dim) else size for size in type.shape]
        made: onnx.ValueInfoProto = self.helper.make_tensor_value_info(name, self._dtype(type), shape)
        return made

    def _weight(self, op: Weight) -> onnx.TensorProto:
        from onnx import TensorProto

        type = op.symbol.type
        tensor = TensorProto(name=self.names[op.result], data_type=self._dtype(type), dims=list(type.shape))
        tensor.metadata_props.add(key="element", value=str(type.element))
        return tensor

    def _scalar(self, op: prim.Constant) -> onnx.TensorProto:
        made: onnx.TensorProto = self.helper.make_tensor(self.names[op.result], self._dtype(op.type), [], [op.value])
        return made

    def _dtype(self, type: TensorType) -> int:
        return int(self.helper.np_dtype_to_tensor_dtype(numpy_dtype(type.dtype)))


def _domain_and_type(cls: type[Op]) -> tuple[str, str]:
    """nn.rms_norm -> ("irlab.nn", "rms_norm"); call -> ("irlab.call", "call")."""
    dialect, _, kind = cls.opname.partition(".")
    return f"irlab.{dialect}", kind or dialect


def _origin(op: Op) -> Iterator[tuple[str, str]]:
    if op.loc:
        for key in ("path", "source", "made_by"):
            if text := getattr(op.loc, key):
                yield key, text
