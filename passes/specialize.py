"""The specialize pass: sizes that were symbols become numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from irlab.dims import Dim, Size, substitute, symbols
from irlab.errors import InputError, UsageError
from irlab.ir import Graph, Module, Value
from irlab.options import did_you_mean
from irlab.passmgr import Context, Pass


@dataclass(frozen=True)
class Specialize(Pass, name="specialize", exactness="exact"):
    """Gives symbolic sizes fixed values, for runtimes that want every shape known.

        specialize{sizes=batch:1,seq:16}        i64[batch, seq]  ->  i64[1, 16]

    `sizes`: NAME:NUMBER for each size to fix; others stay symbols.
    """

    sizes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.bindings()

    def bindings(self) -> dict[str, int]:
        """The number of each size; UsageError for what is no NAME:NUMBER."""
        found: dict[str, int] = {}
        for item in self.sizes:
            name, colon, number = item.partition(":")
            if not name or not colon or not number.isdecimal() or len(number) > 9 or not int(number):
                raise UsageError(f"'{item}' fixes no size", "write sizes=batch:1,seq:16")
            found[name] = int(number)
        return found

    def run(self, module: Module, ctx: Context) -> None:
        bindings = self.bindings()
        known = {n for value in module.graph.inputs for size in value.type.shape for n in symbols(size)}
        for name in bindings:
            if name not in known:
                raise InputError(f"specialize: the model has no size '{name}'", did_you_mean(name, known))
        if bindings:
            module.graph = specialised(module.graph, bindings)
        ctx.note_rewrites({"fix-size": len(bindings)})


def specialised(graph: Graph, bindings: Mapping[str, Size]) -> Graph:
    """A copy of `graph` with symbols replaced in the types of inputs and in attributes; all other types follow."""
    copy = Graph()
    mapping: dict[Value, Value] = {}
    for value in graph.inputs:
        shape = tuple(substitute(size, bindings) for size in value.type.shape)
        mapping[value] = copy.input(value.name or "", value.type.with_shape(shape))
    for op in graph.topo():
        changes: dict[str, object] = {n: _known(getattr(op, n), bindings) for n in op.attribute_names}
        changes |= {name: specialised(getattr(op, name), bindings) for name in op.region_names}
        new = op.rebuild((None if v is None else mapping[v] for v in op.operands), **changes)
        copy.add(new)
        for old, made in zip(op.results, new.results):
            made.name = old.name
            mapping[old] = made
    return copy


def _known(attribute: object, bindings: Mapping[str, Size]) -> object:
    if isinstance(attribute, Dim):
        return substitute(attribute, bindings)
    return tuple(_known(item, bindings) for item in attribute) if isinstance(attribute, tuple) else attribute
