"""A graph: a set of ops partitioned by class, with no stored order.

The partition is the opcode index; `topo()` derives an order when one is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

from ..errors import IRError
from ..types import TensorType
from .op import UNKNOWN_LOC, Loc, Op, Return, Value, Weight

if TYPE_CHECKING:
    from ..weights import WeightSymbol

AnyOp = TypeVar("AnyOp", bound=Op)


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
