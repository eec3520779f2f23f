"""The IR itself: values, ops, graphs, modules. SSA, purely functional, with no stored order.

A graph is a set of ops partitioned by class: the partition is the opcode index, and `topo()` derives an order when one
is needed. New ops are built *detached* (`op.graph is None`) and attached when something attached reaches them, so a
rewrite is a pure expression and needs no insertion point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

from .errors import IRError
from .opdef import Field, OpMeta
from .types import TensorType

if TYPE_CHECKING:
    from .weights import WeightSymbol

P = ParamSpec("P")
AnyOp = TypeVar("AnyOp", bound="Op")


class Value:
    """One SSA value: the result of `op`, or a graph input where `op` is None.

    `uses` maps each attached op that reads the value to the number of operand slots it fills; a dict, so that
    removing a use is O(1) and iteration is in the order in which the uses were made.
    """

    __slots__ = ("name", "op", "type", "uses")

    def __init__(self, op: Op | None, type: TensorType, name: str | None = None) -> None:
        self.op = op
        self.type = type
        self.uses: dict[Op, int] = {}
        self.name = name

    def __repr__(self) -> str:
        return f"<%{self.name or '?'} = {self.op.opname if self.op else 'input'} : {self.type}>"


class Loc:
    """Where an op came from. `path` is the HF module path, `source` a file:line, `made_by` a rule or pass.

    Interned by `at`, so that a derived location costs a dict look-up.
    """

    __slots__ = ("made_by", "path", "source")
    _interned: ClassVar[dict[tuple[str, str, str], Loc]] = {}

    path: str
    source: str
    made_by: str

    @classmethod
    def at(cls, path: str = "", source: str = "", made_by: str = "") -> Loc:
        """The location with these parts; empty parts are unknown."""
        key = (path, source, made_by)
        found = cls._interned.get(key)
        if found is None:
            found = cls._interned[key] = cls()
            found.path, found.source, found.made_by = key
        return found

    def by(self, made_by: str) -> Loc:
        """This place, as rewritten by the rule or pass `made_by`."""
        return Loc.at(self.path, self.source, made_by)

    def __repr__(self) -> str:
        return f"<Loc {self.path or '?'} {self.source} {self.made_by}>"


UNKNOWN_LOC = Loc.at()


class OpState:
    """The slots that every op has. Apart from `Op`, so that type checkers do not take them for declared fields."""

    __slots__ = ("graph", "loc", "operands", "results", "seq")

    value_class: ClassVar[type] = Value
    opname: ClassVar[str]
    commutative: ClassVar[bool]
    fields: ClassVar[tuple[Field, ...]]
    operand_names: ClassVar[tuple[str, ...]]
    attribute_names: ClassVar[tuple[str, ...]]
    region_names: ClassVar[tuple[str, ...]]

    operands: tuple[Value | None, ...]
    results: tuple[Value, ...]
    graph: Graph | None
    seq: int
    loc: Loc | None


class Op(OpState, metaclass=OpMeta):
    """One operation. Subclasses declare operands and attributes by annotation (see opdef.py).

    `operands` holds None where an optional operand is missing. `seq` places the op among its peers: `topo()` is
    stable in it, and replacements inherit it.
    """

    __slots__ = ()

    @property
    def result(self) -> Value:
        """The first (usually the only) result."""
        return self.results[0]

    @property
    def attributes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.attribute_names}

    @property
    def regions(self) -> tuple[Graph, ...]:
        return tuple(getattr(self, name) for name in self.region_names)

    def infer(self) -> TensorType | tuple[TensorType, ...]:
        """The result types; raises TypeInferenceError where operands or attributes do not fit."""
        raise IRError(f"{self.opname} does not say how its types are inferred", op=self)

    def rebuild(self, operands: Iterable[Value | None], **attributes: object) -> Op:
        """A detached copy of this op on other `operands`, with some `attributes` (or regions) replaced."""
        from .opdef import FieldKind

        values = list(operands)
        arguments: dict[str, object] = {}
        position = 0
        for field in self.fields:
            if field.kind is FieldKind.VARIADIC:
                arguments[field.name] = tuple(values[position:])
            elif field.kind in (FieldKind.OPERAND, FieldKind.OPTIONAL):
                arguments[field.name] = values[position]
                position += 1
            else:
                arguments[field.name] = attributes.get(field.name, getattr(self, field.name))
        copy: Op = type(self)(**arguments)
        copy.loc = self.loc
        return copy

    def __repr__(self) -> str:
        return f"<{self.opname} at {self.loc.path}>" if self.loc and self.loc.path else f"<{self.opname}>"


class Return(Op, opname="return"):
    """The results of a graph, by name. A graph has exactly one."""

    values: tuple[Value, ...]
    names: tuple[str, ...]

    def infer(self) -> tuple[TensorType, ...]:
        if len(self.operands) != len(self.names):
            raise IRError(f"{len(self.operands)} values are returned under {len(self.names)} names", op=self)
        return ()


class Weight(Op, opname="prim.weight"):
    """The value of a weight symbol, printed as `@name`. Several uses of it are a tied weight."""

    symbol: WeightSymbol

    def infer(self) -> TensorType:
        return self.symbol.type


def expression(cls: Callable[P, Op]) -> Callable[P, Value]:
    """The function that builds an op of class `cls` and gives its first result: `rms_norm = expression(RMSNorm)`."""
    build: Callable[P, Value] = cls.make  # type: ignore[attr-defined]  # generated by opdef.py
    build.__name__ = build.__qualname__ = getattr(cls, "__name__", "op").lower()
    build.__doc__ = cls.__doc__
    build.__wrapped__ = cls  # type: ignore[attr-defined]
    return build


def expressions(cls: Callable[P, Op]) -> Callable[P, tuple[Value, ...]]:
    """As `expression`, for ops with several results: gives all of them."""

    def build(*args: P.args, **kwargs: P.kwargs) -> tuple[Value, ...]:
        return cls(*args, **kwargs).results

    build.__name__ = build.__qualname__ = getattr(cls, "__name__", "op").lower()
    build.__doc__ = cls.__doc__
    build.__wrapped__ = cls  # type: ignore[attr-defined]
    return build


class Graph:
    """A set of ops partitioned by class, with inputs and a `Return`."""

    __slots__ = ("_clock", "index", "inputs")

    def __init__(self) -> None:
        self.inputs: list[Value] = []
        self.index: dict[type[Op], dict[Op, None]] = {}
        self._clock = 0

    # Building

    def input(self, name: str, type: TensorType) -> Value:
        """Add an input. Names are unique within the graph."""
        if any(value.name == name for value in self.inputs):
            raise IRError(f"the graph already has an input called %{name}")
        value = Value(None, type, name)
        self.inputs.append(value)
        return value

    def add(self, op: AnyOp) -> AnyOp:
        """Attach a detached `op`, after everything attached so far, with the detached ops it reaches."""
        self._clock += 1
        self.attach(op, self._clock)
        return op

    def output(self, **values: Value) -> None:
        """Set the outputs by name, replacing the ones before; names with dots go through `set_outputs`."""
        self.set_outputs(values)

    def set_outputs(self, values: Mapping[str, Value]) -> None:
        """Set the outputs by name, replacing the ones before."""
        old = self.return_op if Return in self.index else None
        self.add(Return(tuple(values.values()), tuple(values)))
        if old is not None:
            self.erase(old)

    def attach(self, op: Op, seq: int, loc: Loc | None = None) -> list[Op]:
        """Attach a detached `op` and every detached op it reaches, at place `seq`; ops that carry no location get
        `loc`. Returns the ops that were attached, producers first. Iterative: a chain of any length is fine."""
        for value in op.operands:
            if value is not None and (producer := value.op) is not None and producer.graph is not self:
                return self._attach_all(op, seq, loc)
        # The usual case by far: one new op on values that are attached.
        for value in op.operands:
            if value is not None:
                uses = value.uses
                uses[op] = uses[op] + 1 if op in uses else 1
        op.graph = self
        op.seq = seq
        if op.loc is None:
            op.loc = loc
        partition = self.index.get(type(op))
        if partition is None:
            partition = self.index[type(op)] = {}
        partition[op] = None
        return [op]

    def _attach_all(self, op: Op, seq: int, loc: Loc | None) -> list[Op]:
        attached: list[Op] = []
        stack: list[Op] = [op]
        while stack:
            current = stack[-1]
            if current.graph is not None:  # reached twice before it was attached
                stack.pop()
                continue
            ready = True
            for value in current.operands:
                if value is not None:
                    producer = value.op
                    if producer is not None and producer.graph is not self:
                        if producer.graph is not None:
                            raise IRError(f"{current.opname} reads a value of another graph", op=current)
                        if not producer.results:
                            raise IRError(f"{current.opname} reads a value of an erased {producer.opname}", op=current)
                        stack.append(producer)
                        ready = False
            if ready:
                stack.pop()
                attached += self.attach(current, seq, loc)
        return attached

    # Changing

    def replace_uses(self, old: Value, new: Value) -> None:
        """Let every op that reads `old` read `new` instead. `new` must be attached (or an input)."""
        if old is new:
            return
        moved = old.uses
        for user in moved:
            operands = user.operands
            match len(operands):  # unrolled: this is most of the cost of a rewrite
                case 1:
                    user.operands = (new,)
                case 2:
                    a, b = operands
                    user.operands = (new if a is old else a, new if b is old else b)
                case 3:
                    a, b, c = operands
                    user.operands = (new if a is old else a, new if b is old else b, new if c is old else c)
                case _:
                    user.operands = tuple([new if value is old else value for value in operands])
        uses = new.uses
        if uses:
            for user, count in moved.items():
                uses[user] = uses.get(user, 0) + count
        else:
            new.uses = moved
        old.uses = {}
        if new.name is None and new.op is not None:
            new.name, old.name = old.name, None

    def replace(self, op: Op, *values: Value, made_by: str = "") -> None:
        """Replace the results of `op` by `values` (attaching them) and erase it with what dies with it."""
        if len(values) != len(op.results):
            raise IRError(f"{op.opname} has {len(op.results)} results, {len(values)} replacements were given", op=op)
        loc = (op.loc or UNKNOWN_LOC).by(made_by) if made_by else op.loc
        for new in values:
            if new.op is not None and new.op.graph is None:
                self.attach(new.op, op.seq, loc)
        for old, new in zip(op.results, values):
            self.replace_uses(old, new)
        self.erase(op)

    def set_operand(self, op: Op, index: int, new: Value) -> None:
        """Let one operand slot of `op` read `new`, attaching it if it is detached."""
        old = op.operands[index]
        if new.op is not None and new.op.graph is None:
            self.attach(new.op, op.seq, op.loc)
        op.operands = (*op.operands[:index], new, *op.operands[index + 1 :])
        new.uses[op] = new.uses.get(op, 0) + 1
        if old is not None:
            self._drop_use(old, op)

    def erase(self, op: Op) -> None:
        """Erase an op whose results are not used, and the producers that die with it. Iterative.

        An erased op loses its results: the two refer to each other, and without that they are freed at once rather than
        by the cyclic collector, whose full runs cost more than all else when a large graph is rewritten.
        """
        stack = [op]
        index = self.index
        while stack:
            dead = stack.pop()
            del index[type(dead)][dead]
            dead.graph = None
            for value in dead.operands:
                if value is not None:
                    uses = value.uses
                    # A repeated operand was popped the first time it was met.
                    if uses.pop(dead, None) is not None and not uses:
                        producer = value.op
                        if producer is not None and producer.graph is self:
                            results = producer.results
                            if len(results) == 1 or not any(r.uses for r in results):
                                stack.append(producer)
            dead.results = ()

    def _drop_use(self, value: Value, user: Op) -> None:
        count = value.uses[user] - 1
        if count:
            value.uses[user] = count
            return
        del value.uses[user]
        producer = value.op
        if producer is not None and producer.graph is self and not any(r.uses for r in producer.results):
            self.erase(producer)

    def erase_dead(self) -> int:
        """Erase every op that no output depends on; returns how many."""
        live: set[Op] = set()
        stack: list[Op] = [self.return_op]
        while stack:
            op = stack.pop()
            if op not in live:
                live.add(op)
                stack.extend([v.op for v in op.operands if v is not None and v.op is not None])
        dead = [op for op in self.ops() if op not in live]
        for op in dead:
            del self.index[type(op)][op]
            op.graph = None
            for value in op.operands:
                if value is not None:
                    value.uses.pop(op, None)
        return len(dead)

    # Looking

    @property
    def return_op(self) -> Return:
        found = next(iter(self.index.get(Return, ())), None)
        if not isinstance(found, Return):
            raise IRError("the graph returns nothing: set its outputs")
        return found

    @property
    def outputs(self) -> dict[str, Value]:
        op = self.return_op
        return dict(zip(op.names, op.values))

    def ops(self) -> list[Op]:
        """All ops, grouped by class, in no meaningful order (see `topo`)."""
        return [op for partition in self.index.values() for op in partition]

    def find(self, cls: type[AnyOp]) -> list[AnyOp]:
        """The ops of exactly this class, in order of `seq`; a list, so that the graph may change meanwhile."""
        found: list[AnyOp] = list(self.index.get(cls, ()))  # type: ignore[arg-type]
        found.sort(key=attrgetter("seq"))
        return found

    def topo(self) -> list[Op]:
        """All ops, producers before users, otherwise by `seq`. Raises IRError on a cycle."""
        pending = sorted(self.ops(), key=attrgetter("seq"))
        done: set[Op] = set()
        order: list[Op] = []
        for root in pending:
            if root in done:
                continue
            stack = [root]
            open_: set[Op] = set()
            while stack:
                op = stack[-1]
                if op in done:
                    stack.pop()
                    continue
                missing = [v.op for v in op.operands if v is not None and v.op is not None and v.op not in done]
                if missing:
                    if op in open_:
                        raise IRError(f"{op.opname} depends on itself", op=op)
                    open_.add(op)
                    stack.extend(reversed(missing))
                else:
                    stack.pop()
                    done.add(op)
                    order.append(op)
        return order

    def weights(self) -> dict[str, WeightSymbol]:
        """The weights this graph and its regions refer to, by name, in order of first use."""
        found: dict[str, WeightSymbol] = {}
        for op in self.find(Weight):
            found.setdefault(op.symbol.name, op.symbol)
        for holder in self.region_ops():
            for region in holder.regions:
                for name, symbol in region.weights().items():
                    found.setdefault(name, symbol)
        return found

    def region_ops(self) -> Iterator[Op]:
        """The ops of this graph that hold regions."""
        for cls, partition in self.index.items():
            if cls.region_names:
                yield from partition

    def __len__(self) -> int:
        return sum(map(len, self.index.values()))

    def clone(self) -> Graph:
        """A copy that shares nothing that can change (weight symbols are values and stay shared)."""
        copy = Graph()
        mapping: dict[Value, Value] = {value: copy.input(value.name or "", value.type) for value in self.inputs}
        for op in self.topo():
            regions = {name: getattr(op, name).clone() for name in op.region_names}
            new = op.rebuild((None if v is None else mapping[v] for v in op.operands), **regions)
            copy.attach(new, op.seq)
            for old_result, new_result in zip(op.results, new.results):
                new_result.name = old_result.name
                mapping[old_result] = new_result
        copy._clock = self._clock
        return copy


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
        import copy

        new = Module(self.graph.clone(), self.name, copy.deepcopy(self.metadata))
        new.directory = self.directory
        return new

    def __str__(self) -> str:
        from .text import print_module

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
        from .weights import Random, WeightSymbol

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
    from .dims import parse
    from .types import tensor

    return tensor(element, tuple(parse(d) if isinstance(d, str) else d for d in shape))
