"""How is a picture taken of a module? Ops become nodes, values edges, module paths and regions nested groups."""

from __future__ import annotations

from ..cost import flops
from ..ir import Graph, Module, Op, Return, Value, Weight
from ..ops import prim
from ..text.attributes import value_text
from ..types import TensorType
from ..weight_uses import operand_name
from .families import family_of
from .picture import ROOT, Edge, Group, Node, Picture, WeightInfo
from .places import input_path, module_paths


def picture_of(module: Module | Graph) -> Picture:
    """The picture of a module or graph, every op a node. Raises IRError for a graph with a cycle."""
    if isinstance(module, Graph):
        return _Camera("graph").shoot(module)
    return _Camera(module.name).shoot(module.graph)


class _Camera:
    """Collects the nodes, edges and groups of a graph and its regions."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: dict[str, Node] = {}
        self.edges: list[Edge] = []
        self.groups: dict[str, Group] = {}
        self._types: dict[TensorType, str] = {}

    def shoot(self, graph: Graph) -> Picture:
        self._graph(graph, ROOT, "")
        return Picture(self.name, self.nodes, tuple(self.edges), self.groups)

    def _graph(self, graph: Graph, region: str, prefix: str) -> None:
        """Add a graph whose outermost group is `region`; `prefix` goes before the ids of its nodes."""
        order = graph.topo()
        paths = module_paths(order)
        ids: dict[Value, tuple[str, int]] = {}
        for given in graph.inputs:
            node = self._input(given, prefix, self._group(region, input_path(given, paths)))
            ids[given] = (node.id, 0)
        taken: dict[str, int] = {}
        for op in order:
            group = self._group(region, paths[op])
            stem = prefix + _stem(op)
            again = taken[stem] = taken.get(stem, -1) + 1
            name = f"{stem}.{again}" if again else stem
            if op.region_names:
                group = self._add_group(Group(f"{name}/", op.opname, group, "region"))
            self._node(op, name, group)
            ids.update({result: (name, number) for number, result in enumerate(op.results)})
            for slot, value in enumerate(op.operands):
                if value is not None:
                    source, output = ids[value]
                    self.edges.append(Edge(source, name, self._type(value.type), operand_name(op, slot), output))
            for label, inner in zip(op.region_names, op.regions):
                inside = self._add_group(Group(f"{name}/{label}", label.rstrip("_"), group, "region"))
                self._graph(inner, inside, f"{name}/{label}/")
                self._enter(op, name, inner, f"{name}/{label}/")

    def _enter(self, op: Op, name: str, region: Graph, prefix: str) -> None:
        # The last operands of an op with regions are what the regions are given.
        given = op.operands[len(op.operands) - len(region.inputs) :]
        for value, inner in zip(given, region.inputs):
            if value is not None:
                self.edges.append(Edge(name, f"{prefix}%{inner.name}", self._type(inner.type), inner.name or ""))

    def _input(self, value: Value, prefix: str, group: str) -> Node:
        text = self._type(value.type)
        node = Node(f"{prefix}%{value.name}", "input", "input", f"%{value.name}", group, types=(text,))
        self.nodes[node.id] = node
        return node

    def _node(self, op: Op, name: str, group: str) -> None:
        symbols = [v.op.symbol for v in op.operands if v is not None and isinstance(v.op, Weight)]
        weight = None
        if isinstance(op, Weight):
            symbols = [op.symbol]
            weight = _weight_info(op)
        loc = op.loc
        self.nodes[name] = Node(
            id=name,
            op=op.opname,
            family=family_of(type(op)).name,
            label=_label(op),
            group=group,
            attributes=attribute_texts(op),
            types=tuple([self._type(result.type) for result in op.results]),
            path=loc.path if loc else "",
            source=loc.source if loc else "",
            made_by=loc.made_by if loc else "",
            weight=weight,
            parameters=sum(_count(symbol.type) for symbol in symbols),
            bytes=sum(symbol.size_bytes for symbol in symbols),
            flops=flops(op),
        )

    def _group(self, region: str, path: str) -> str:
        """The group of a module path inside `region`, made with those around it when first needed."""
        if not path:
            return region
        name = f"{region}:{path}" if region else path
        if name not in self.groups:
            parent, _, label = path.rpartition(".")
            self._add_group(Group(name, label, self._group(region, parent)))
        return name

    def _add_group(self, group: Group) -> str:
        self.groups[group.id] = group
        return group.id

    def _type(self, type: TensorType) -> str:
        text = self._types.get(type)
        if text is None:
            text = self._types[type] = str(type)
        return text


def _stem(op: Op) -> str:
    if isinstance(op, Weight):
        return f"@{op.symbol.name}"
    return f"{op.opname}:{op.seq}"


def _label(op: Op) -> str:
    if isinstance(op, Weight):
        return f"@{op.symbol.name}"
    if isinstance(op, prim.Constant):
        return value_text(op.value)
    return f"{op.opname} {op.attributes['target']}" if op.opname == "call" else op.opname


def attribute_texts(op: Op) -> dict[str, str]:
    """The attributes of an op that differ from their defaults, as IR text has them."""
    if isinstance(op, Return):
        return {"names": ", ".join(op.names)}
    if isinstance(op, Weight):
        return {}
    values = ((f.name, getattr(op, f.name), f.default) for f in op.fields if f.name in op.attribute_names)
    return {name: value_text(value) for name, value, default in values if value != default}


def _count(type: TensorType) -> int:
    return type.size if isinstance(type.size, int) else 0


def _weight_info(op: Weight) -> WeightInfo:
    type = op.symbol.type
    sizes = tuple([size for size in type.shape if isinstance(size, int)])
    return WeightInfo(op.symbol.name, str(type.element), sizes, _count(type), op.symbol.size_bytes)
