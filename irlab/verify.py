"""Does a module keep the rules of the IR? Structure first, then the types, inferred again.

An error shows the op at fault with the lines around it, marked with an arrow.
"""

from __future__ import annotations

from .errors import IRError, IrlabError
from .ir import Graph, Module, Op, Return, Value, Weight, place_of
from .text import excerpt
from .text.signatures import signature
from .weights import WeightSymbol


def verify(module: Module) -> None:
    """Raise IRError unless the module's graph and the regions in it keep the rules:

    ops stand under their class and belong to the graph; operands are its inputs or results of its ops; uses mirror
    operands; there is one Return and no cycle; names of inputs and of outputs are unique; a weight name means one
    weight; each region belongs to one op and reads nothing from outside; stored types are the inferred ones.
    """
    _Verifier().graph(module.graph)


class _Verifier:
    def __init__(self) -> None:
        self.symbols: dict[str, WeightSymbol] = {}
        self.graphs: set[int] = set()

    def graph(self, graph: Graph) -> None:
        self.graphs.add(id(graph))
        ops = graph.ops()
        _check_inputs(graph)
        _check_attached(graph)
        _check_operands(graph, ops)
        _check_uses(graph, ops)
        _check_return(graph)
        try:
            graph.topo()
        except IRError as error:
            raise _fault(graph, error.op, error.message) from None
        for op in graph.find(Weight):
            known = self.symbols.setdefault(op.symbol.name, op.symbol)
            if known is not op.symbol and known != op.symbol:
                raise _fault(graph, op, f"two different weights are called @{op.symbol.name}", "rename one of them")
        # Regions first: what is wrong inside shows in the type of the op that holds it.
        for holder in graph.region_ops():
            self._regions(graph, holder)
        _check_types(graph, ops)

    def _regions(self, graph: Graph, op: Op) -> None:
        for name, region in zip(op.region_names, op.regions):
            if id(region) in self.graphs:
                raise _fault(graph, op, f"the region '{name}' belongs to another op too", "clone it")
            try:
                self.graph(region)
            except IRError as error:
                raise IRError(f"in the region '{name}' of {op.opname}: {error.message}", error.hint, error.op) from None


def _fault(graph: Graph, op: Op | None, message: str, hint: str = "") -> IRError:
    """The error about `op`, with the lines around it."""
    if op is None:
        return IRError(message, hint)
    way_out = f" ({hint})" if hint else ""
    return IRError(f"{place_of(op)}: {message}{way_out}\n{excerpt(graph, op)}", op=op)


def _check_inputs(graph: Graph) -> None:
    names: set[str] = set()
    for value in graph.inputs:
        if value.op is not None:
            raise _fault(graph, value.op, "its result is listed among the inputs of the graph")
        if not value.name or value.name in names:
            what = f"two inputs are called %{value.name}" if value.name else "an input has no name"
            raise IRError(what, "every input has its own name")
        names.add(value.name)


def _check_attached(graph: Graph) -> None:
    for cls, partition in graph.index.items():
        for op in partition:
            if type(op) is not cls:
                raise _fault(graph, op, f"stands under {cls.opname}")
            if op.graph is not graph:
                raise _fault(graph, op, "does not belong to the graph that lists it")
            for result in op.results:
                if result.op is not op:
                    raise _fault(graph, op, "a result of it belongs to another op")


def _check_operands(graph: Graph, ops: list[Op]) -> None:
    inputs = set(graph.inputs)
    index = graph.index
    for op in ops:
        for value in op.operands:
            if value is None:
                if wrong := signature(type(op)).wrong_operands(list(op.operands)):
                    raise _fault(graph, op, wrong)
                continue
            producer = value.op
            if producer is None:
                if value not in inputs:
                    raise _fault(graph, op, f"reads the input %{value.name} of another graph", _OUTSIDE)
            elif producer.graph is not graph:
                whose = (
                    "another graph" if producer.graph is not None else "no graph: the op was erased or never attached"
                )
                raise _fault(graph, op, f"reads a result of {producer.opname} in {whose}", _OUTSIDE)
            elif producer not in index.get(type(producer), ()) or value not in producer.results:
                raise _fault(graph, op, f"reads a value that {producer.opname} does not give")


_OUTSIDE = "what a region uses from outside must be an operand of its op"


def _check_uses(graph: Graph, ops: list[Op]) -> None:
    pairs = 0
    for op in ops:
        operands = op.operands
        for value in dict.fromkeys(operands):
            if value is not None:
                pairs += 1
                recorded, actual = value.uses.get(op, 0), operands.count(value)
                if recorded != actual:
                    raise _fault(graph, op, f"reads {_name(value)} {actual} times, but {recorded} uses are recorded")
    values = [*graph.inputs, *(result for op in ops for result in op.results)]
    if sum([len(value.uses) for value in values]) != pairs:
        for value in values:
            for user in value.uses:
                if user.graph is not graph or value not in user.operands:
                    message = f"a use of {_name(value)} by {user.opname} is recorded, but it does not read it"
                    raise _fault(graph, value.op or (user if user.graph is graph else None), message)


def _name(value: Value) -> str:
    return f"%{value.name}" if value.name else f"a result of {value.op.opname}" if value.op else "an input"


def _check_return(graph: Graph) -> None:
    returns = graph.find(Return)
    if len(returns) != 1:
        message = "the graph returns nothing" if not returns else f"the graph has {len(returns)} returns"
        raise _fault(graph, returns[-1] if returns else None, message, "a graph has one return: set its outputs")
    op = returns[0]
    if len(set(op.names)) != len(op.names):
        raise _fault(graph, op, "two outputs have one name")


def _check_types(graph: Graph, ops: list[Op]) -> None:
    for op in ops:
        try:
            types = op.infer()
        except IrlabError as error:
            raise _fault(graph, op, error.message, error.hint) from None
        results = op.results
        if types.__class__ is tuple:
            same = len(results) == len(types) and [r.type for r in results] == list(types)
        else:
            same = len(results) == 1 and results[0].type is types
        if not same:
            inferred = ", ".join(map(str, types)) if isinstance(types, tuple) else str(types)
            stored = ", ".join([str(result.type) for result in results])
            raise _fault(graph, op, f"its type is {stored}, but its operands and attributes give {inferred}")
