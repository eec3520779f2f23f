"""How a live module becomes an exported program: torch.export with named sizes, no more decomposition than needed."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irlab.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

    from irlab.frontends.torch.sizes import Sizes


@dataclass(frozen=True)
class Exported:
    """An exported program with the names of its symbolic sizes. `tied` maps each further name of a parameter or buffer
    that has several to its first one."""

    program: ExportedProgram
    sizes: Sizes
    tied: Mapping[str, str]


def export(
    module: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    known: frozenset[str],
) -> Exported:
    """Export `module` in evaluation mode. Ops named in `known` ("aten.linear") are kept above their decomposition.

    `dynamic_shapes` is torch.export's, where a size may also be given by its name alone: {"x": {0: "batch"}}.
    Raises InputError where torch.export cannot trace the module, with the first two lines of its reason.
    """
    import torch

    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch warns of its own pytree code
            program = torch.export.export(
                module,
                *_distinct((tuple(args), dict(kwargs or {}))),
                dynamic_shapes=_as_torch(dynamic_shapes),
                strict=False,
            )
            if _needs_decomposition(program, known):
                program = program.run_decompositions(_table_without(known))
    except Exception as error:  # torch.export raises what the module's own code raises, and its own many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {' '.join(lines[:2]):.400}"
        raise InputError(f"torch.export cannot trace {type(module).__name__}: {reason}") from error
    finally:
        module.train(was_training)
    return Exported(program, _named_sizes(module, args, kwargs or {}, dynamic_shapes, program), _tied_names(module))


def _tied_names(module: torch.nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, values in tensors:
        known = first.setdefault(id(values), name)
        if known != name:
            tied[name] = known
    return tied


def _distinct(inputs: Any) -> Any:
    """`inputs` with a tensor that stands in two places copied: torch.export would take the two for one input."""
    import torch
    from torch.utils._pytree import tree_map_only

    seen: set[int] = set()

    def once(values: torch.Tensor) -> torch.Tensor:
        if id(values) in seen:
            return values.clone()
        seen.add(id(values))
        return values

    return tree_map_only(torch.Tensor, once, inputs)


def overload_name(target: Any) -> str:
    """The name of an ATen (or custom) op: "aten.add.Tensor"."""
    return str(target)


def packet_name(target: Any) -> str:
    """The name without the overload: "aten.add"."""
    return str(target).rpartition(".")[0]


def _needs_decomposition(program: ExportedProgram, known: frozenset[str]) -> bool:
    """Whether the graph mutates tensors, holds subgraphs, or computes its outputs with ops beyond the tables."""
    nodes = list(program.graph.nodes)
    if any(n.op == "get_attr" or getattr(getattr(n.target, "_schema", None), "is_mutable", False) for n in nodes):
        return True
    names = [{overload_name(n.target), packet_name(n.target)} for n in live_nodes(nodes) if _is_tensor_op(n)]
    return any(not known & name for name in names)


def _is_tensor_op(node: Node) -> bool:
    return node.op == "call_function" and hasattr(node.target, "_schema") and not is_size(node)


def live_nodes(nodes: Sequence[Node]) -> set[Node]:
    """What the outputs depend on. Exported graphs without mutation need nothing else."""
    stack = [node for node in nodes if node.op == "output"]
    live: set[Node] = set()
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack.extend(node.all_input_nodes)
    return live


def is_size(node: Node) -> bool:
    """Whether the node computes a number rather than a tensor."""
    meta = node.meta.get("val")
    return isinstance(meta, (bool, int, float)) or (hasattr(meta, "node") and not hasattr(meta, "dtype"))


def _table_without(known: frozenset[str]) -> Any:
    """torch's decompositions to core ATen, less the ops that have a lowering of their own."""
    import torch

    table = torch.export.default_decompositions()
    for op in list(table):
        if {overload_name(op), packet_name(op)} & known:
            del table[op]
    return table


def _as_torch(spec: Any) -> Any:
    """`dynamic_shapes` with plain names replaced by torch's marker for a dynamic size."""
    import torch

    if isinstance(spec, str):
        return torch.export.Dim.DYNAMIC
    if isinstance(spec, Mapping):
        return {key: _as_torch(value) for key, value in spec.items()}
    if isinstance(spec, (list, tuple)):
        return type(spec)(_as_torch(value) for value in spec)
    return spec


def _named_sizes(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], spec: Any, program: ExportedProgram
) -> Sizes:
    from irlab.frontends.torch.sizes import Sizes

    user_inputs = set(program.graph_signature.user_inputs)
    fakes = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in user_inputs]
    names: dict[str, str] = {}
    given = list(_leaf_names(_bound(module, args, kwargs), spec)) if spec else []
    for fake, sizes in zip(fakes, given):
        for axis, name in sizes.items():
            expr = getattr(getattr(fake.shape[axis], "node", None), "expr", None)
            if expr is not None and expr.is_Symbol:
                names.setdefault(expr.name, name)
    return Sizes(names)


def _bound(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)


def _leaf_names(value: Any, spec: Any) -> Iterable[dict[int, str]]:
    """For each tensor of `value`, depth first: the names that `spec` gives to its dimensions."""
    import torch

    if isinstance(value, torch.Tensor):
        pairs: Iterable[tuple[int, Any]] = ()
        if isinstance(spec, Mapping):
            pairs = spec.items()
        elif isinstance(spec, (list, tuple)):
            pairs = enumerate(spec)
        yield {axis: name for axis, size in pairs if (name := _size_name(size))}
    elif isinstance(value, Mapping):
        of_key = spec if isinstance(spec, Mapping) else dict(zip(value, spec or ()))
        for key, item in value.items():
            yield from _leaf_names(item, of_key.get(key))
    elif isinstance(value, (list, tuple)):
        specs = list(spec) if isinstance(spec, (list, tuple)) else [None] * len(value)
        for item, item_spec in zip(value, specs):
            yield from _leaf_names(item, item_spec)


def _size_name(size: Any) -> str:
    """The name of a torch.export.Dim or of a plain string; "" for a hint without a name or a derived size."""
    name = size if isinstance(size, str) else getattr(size, "__name__", "")
    return name if name.isidentifier() else ""
