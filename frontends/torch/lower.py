"""How an exported program becomes a graph: live ATen nodes are looked up in the tables, the rest are kept as calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from irlab.errors import InputError, TypeInferenceError
from irlab.frontends.torch.dtypes import from_torch
from irlab.frontends.torch.export import Exported, is_size, live_nodes, overload_name, packet_name
from irlab.frontends.torch.opaque import MEMORY_KEYWORDS, opaque_call
from irlab.ir import UNKNOWN_LOC, Graph, Loc, Op, Value, Weight
from irlab.ops import prim
from irlab.types import DType, TensorType, tensor
from irlab.weights import WeightSymbol

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

Lowered: TypeAlias = "Value | tuple[Value, ...] | None"
"""What a lowering gives: the result(s), or None where it does not cover these arguments (a call is kept then)."""

Lowering: TypeAlias = "Callable[..., Lowered]"
"""`lower(site, *args, **kwargs)` with ATen's arguments: tensors are Values, sizes are Sizes, dtypes are DTypes."""

WeightSource: TypeAlias = "Callable[[str, torch.Tensor], WeightSymbol]"
"""Gives the weight for a parameter, buffer or constant of the module by its qualified name."""


@dataclass(frozen=True)
class Site:
    """One node that is being lowered: `type` is the type that torch says its (first) result has."""

    lift: Lift
    node: Node
    types: tuple[TensorType, ...]

    @property
    def type(self) -> TensorType:
        return self.types[0]

    @property
    def place(self) -> str:
        """Where the node stands in the module, for errors."""
        loc = self.lift.location(self.node)
        return f"at {loc.path or 'the top'}, {loc.source}" if loc.source else f"at {loc.path or 'the top'}"

    def cast(self, x: Value, dtype: DType | None = None) -> Value:
        """`x` in `dtype`, or in the dtype of the result."""
        wanted = dtype or self.type.dtype
        return x if x.type.dtype is wanted else prim.cast(x, wanted)

    def value(self, x: object, dtype: DType | None = None) -> Value:
        """A tensor or Python number as a value of `dtype`, or of the dtype of the result."""
        if isinstance(x, Value):
            return self.cast(x, dtype)
        wanted = dtype or self.type.dtype
        if isinstance(x, (bool, int, float)):
            return prim.constant(x, wanted)
        return self.cast(self.lift.size_value(x), wanted)

    def promoted(self, *positions: int) -> DType:
        """The dtype that torch computes the arguments at `positions` in."""
        import torch

        metas: list[Any] = []
        for position in positions:
            argument: Any = self.node.args[position]
            meta = argument.meta["val"] if hasattr(argument, "meta") else argument
            metas.append(meta if isinstance(meta, (torch.Tensor, bool, int, float)) else 1)  # a size is an integer
        return from_torch(torch.result_type(*metas))


class Lift:
    """The lowering of one exported program; hand it to `run`.

    `tables` maps op names ("aten.add.Tensor", or "aten.add" for all overloads) to lowerings.
    """

    def __init__(
        self, exported: Exported, tables: Mapping[str, Lowering], weights: WeightSource, root: str = ""
    ) -> None:
        self.graph = Graph()
        self.sizes = exported.sizes
        self.nodes: list[Node] = list(exported.program.graph.nodes)
        self.rename: tuple[str, str] | None = None
        self._program = exported.program
        self._tables = tables
        self._source = weights
        self._root = root
        self._env: dict[Node, Any] = {}
        self._weights: dict[str, Value] = {}
        self._named = self._qualified_names(exported.tied)
        self._live = live_nodes(self.nodes)

    def run(self, output_names: Sequence[str] | None = None) -> Graph:
        """Lower everything the outputs depend on. Outputs are called `output_names`, else "output", "output1" ..."""
        signature = self._program.graph_signature
        user_inputs = set(signature.user_inputs)
        for node in self.nodes:
            if node.op == "placeholder" and node.name in user_inputs:
                meta = node.meta["val"]
                if hasattr(meta, "dtype"):
                    self._env[node] = self.graph.input(node.name, self.type_of(meta))
        self.lower(node for node in self.nodes if node.op == "call_function")
        returned = next(node for node in self.nodes if node.op == "output").args[0]
        by_name = {node.name: node for node in self.nodes}
        kept = [by_name[name] for name in signature.user_outputs if isinstance(name, str)]
        if not kept:
            raise InputError(f"the module returns no tensor (it returns {returned!r:.80})")
        names = output_names or ["output", *(f"output{i}" for i in range(1, len(kept)))]
        self.graph.set_outputs({name: self.resolve(node) for name, node in zip(names, kept)})
        for op in self.graph.find(Weight):
            if not op.result.uses:  # a lowering took it apart
                self.graph.erase(op)
        return self.graph

    def lower(self, nodes: Iterable[Node]) -> None:
        """Lower `nodes`, which stand in execution order; dead ones are left out."""
        for node in nodes:
            if node in self._live and node.op == "call_function" and not is_size(node):
                self._env[node] = self._lower_node(node)

    def replay(
        self, nodes: Sequence[Node], inputs: Mapping[Node, Value], rename: tuple[str, str], result: Node
    ) -> Value:
        """Lower `nodes` once more with some of their inputs replaced, and with weights and module paths that begin
        with rename[0] beginning with rename[1] instead. Gives the value of `result`."""
        outer, outer_rename = self._env, self.rename
        self._env, self.rename = {**outer, **inputs}, rename
        try:
            self.lower(node for node in nodes if node not in inputs)
            value: Value = self._env[result]
        finally:
            self._env, self.rename = outer, outer_rename
        return value

    def type_of(self, meta: torch.Tensor) -> TensorType:
        """The IR type of a fake tensor."""
        return tensor(from_torch(meta.dtype), self.sizes.shape(meta.shape))

    def size_value(self, size: object) -> Value:
        """A symbolic size as an i64 of rank 0."""
        from irlab.types import i64

        return prim.reshape(prim.iota(1, i64, size), ())  # type: ignore[arg-type]

    def weight(self, name: str, meta: torch.Tensor) -> Value:
        """The value of the weight called `name`; one value per weight, so a tied weight has several uses."""
        name = self._renamed(name)
        if name not in self._weights:
            self._weights[name] = self.graph.add(Weight(self._source(name, meta))).result
        return self._weights[name]

    def location(self, node: Node) -> Loc:
        """The module path and source line of `node`."""
        modules = list((node.meta.get("nn_module_stack") or {}).values())
        path = modules[-1][0] if modules else ""
        path = "" if path.startswith("_empty_nn_module_stack") else path
        if self._root and (path + ".").startswith(self._root):
            path = path[len(self._root) :]
        return Loc.at(self._renamed(path), _source_line(node.meta.get("stack_trace")))

    def _renamed(self, name: str) -> str:
        if self.rename and (name + ".").startswith(self.rename[0]):
            return self.rename[1].removesuffix(".") + name[len(self.rename[0]) - 1 :]
        return name

    def _qualified_names(self, tied: Mapping[str, str]) -> dict[str, str]:
        """Placeholder name -> qualified name, of parameters, buffers and constants."""
        s = self._program.graph_signature
        lifted = {**s.inputs_to_parameters, **s.inputs_to_buffers, **s.inputs_to_lifted_tensor_constants}
        return {name: tied.get(full, full).removeprefix(self._root) for name, full in lifted.items()}

    def _lower_node(self, node: Node) -> Any:
        if node.target is operator.getitem:
            return self.resolve(node.args[0])[node.args[1]]
        meta = node.meta.get("val")
        several = isinstance(meta, (tuple, list))
        metas: list[Any] = list(meta) if several else [meta]  # type: ignore[arg-type]
        if not metas or not all(hasattr(m, "dtype") for m in metas):
            raise InputError(
                f"{overload_name(node.target)} gives something that is no tensor", self.location(node).path
            )
        loc = self.location(node)
        try:
            site = Site(self, node, tuple([self.type_of(m) for m in metas]))
        except InputError as error:  # a dtype or a size that the IR lacks
            raise InputError(f"{overload_name(node.target)} in {loc.path or 'the module'}: {error.message}") from None
        lowered = self._from_tables(site)
        results: tuple[Value, ...] = (lowered,) if isinstance(lowered, Value) else lowered or opaque_call(site)
        for value in results:
            self._attach(value, loc)
        return results if several else results[0]

    def _from_tables(self, site: Site) -> Lowered:
        target = site.node.target
        lowering = self._tables.get(overload_name(target)) or self._tables.get(packet_name(target))
        if lowering is None:
            return None
        args = [self.resolve(a) for a in site.node.args]
        kwargs = {k: self.resolve(v) for k, v in site.node.kwargs.items() if k not in MEMORY_KEYWORDS}
        try:
            lowered = lowering(site, *args, **kwargs)
        except TypeInferenceError:
            return None
        except TypeError as error:
            # An overload with arguments that the lowering does not take: raised by the call, not inside of it.
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise
            return None
        if lowered is None:
            return None
        results = (lowered,) if isinstance(lowered, Value) else lowered
        # torch knows more of some sizes than the IR can infer; a call has the types that torch says.
        return lowered if all(v.type is t for v, t in zip(results, site.types)) else None

    def resolve(self, arg: Any) -> Any:
        """An argument of an FX node as lowerings see it."""
        import torch
        from torch.fx import Node

        if isinstance(arg, Node):
            if is_size(arg):
                return self.sizes.size(arg.meta["val"])
            if arg in self._env:
                return self._env[arg]
            if arg.name in self._named:
                return self.weight(self._named[arg.name], arg.meta["val"])
            raise InputError(f"the exported graph reads {arg.name}, which is neither a tensor nor a size")
        if isinstance(arg, (list, tuple)):
            return tuple([self.resolve(a) for a in arg])
        if isinstance(arg, torch.dtype):
            return from_torch(arg)
        return arg

    def _attach(self, value: Value, loc: Loc) -> None:
        """Attach `value`, giving `loc` to each new op it brings."""
        if value.op is None or value.op.graph is not None:
            return
        stack: list[Op] = [value.op]
        while stack:
            op = stack.pop()
            if op.graph is None and op.loc is None:
                op.loc = loc if loc is not UNKNOWN_LOC else None
                stack.extend([v.op for v in op.operands if v is not None and v.op is not None])
        self.graph.add(value.op)


def _source_line(trace: str | None) -> str:
    """package/file.py:12, the innermost frame outside torch, without the directory of the installation."""
    if not trace:
        return ""
    short = line = ""
    for frame in reversed(trace.split('File "')[1:]):
        file, _, rest = frame.partition('", line ')
        line = rest.split(",", 1)[0].split("\n", 1)[0]
        parts = file.replace("\\", "/").rpartition("site-packages/")
        short = parts[2] if parts[1] else parts[2].rsplit("/", 1)[-1]
        if not short.startswith("torch/"):
            break
    return f"{short}:{line}"
