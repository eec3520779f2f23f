"""A matcher that goes on after a failure, at one op with one form of a pattern.

It walks the same pattern data as the compiled one in the same order, but the part of the pattern around a failure still
counts, and the way of matching that gets furthest is the one reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from ..forms import Form, anchor, inside, matching_order, parent_counts, reach
from ..ir import Op, Value, place_of
from ..matching import Match
from ..ops.literals import Constant
from ..pattern import PatternError, Variable
from ..pattern.nodes import Maybe, Named, Number, OpPattern, Optional, Pattern, Predicate, Rest, Result, refusal
from ..pattern.walk import walk

PATIENCE: Final = 20_000
"""Pattern nodes tried at one root before the best explanation so far is taken."""


def _producer(value: Value) -> str:
    return value.op.opname if value.op else f"the input %{value.name}"


class Failure(NamedTuple):
    """Where a way of matching stopped, and why."""

    op: Op
    reason: str


class State(NamedTuple):
    """One way of matching so far. `ops` maps pattern nodes to ops (None: an optional wrapper that is not there)."""

    bindings: dict[str, Any]
    ops: dict[OpPattern, Op | None]
    constants: tuple[Op, ...] = ()
    matched: frozenset[Pattern] = frozenset()
    failure: Failure | None = None

    def bind(self, name: str, thing: object) -> State:
        return self._replace(bindings={**self.bindings, name: thing}) if name else self


States = Iterator[State]


class Search:
    """The search at one root with one form. A tolerant search goes on after the first failure of each way."""

    def __init__(self, form: Form, matches: type[Match], where: Predicate | None, tolerant: bool) -> None:
        self.form, self.matches, self.where, self.tolerant = form, matches, where, tolerant
        self.parents = parent_counts(form)
        nodes = walk(form.roots)
        # An optional wrapper is no pattern node of its own: it does not count.
        self.wrappers = {node.wrapper for node in nodes if isinstance(node, Maybe)}
        self.total = sum(isinstance(node, (OpPattern, Number)) and node not in self.wrappers for node in nodes)
        self.patience = PATIENCE
        self.match: Match | None = None
        self.best: tuple[int, Failure]

    def run(self, root: Op) -> bool:
        """Whether the form matches at `root`; else `best` says how far it came."""
        self.best = (0, Failure(root, "nothing matches"))
        for state in self.consume(self.form.roots[0], root, State({}, {})):
            for complete in self.further_roots(1, state):
                if complete.failure is None and self.finish(root, complete):
                    return True
                self.note(complete)
        return False

    # Failing

    def note(self, state: State) -> None:
        matched = len(state.matched - self.wrappers)
        if state.failure is not None and matched > self.best[0]:
            self.best = (matched, state.failure)

    def fail(self, state: State, op: Op, reason: str) -> States:
        """The way goes on with a failure, if it had none and the search is tolerant."""
        if state.failure is None:
            state = state._replace(failure=Failure(op, reason))
            self.note(state)
            if self.tolerant:
                yield state
        else:
            self.note(state)

    # Nodes

    def further_roots(self, index: int, state: State) -> States:
        if index == len(self.form.roots):
            yield state
            return
        pattern = self.form.roots[index]
        if pattern in state.ops:
            yield from self.further_roots(index + 1, state)
            return
        if state.failure is not None and not self.anchored(pattern, state):
            self.note(state)
            return
        node, depth = anchor(pattern, state.bindings, state.ops)
        value = self.known_value(node, state)
        candidates = reach(value, pattern.cls, depth) if value is not None else []
        root = next(op for op in state.ops.values() if op is not None)
        if not candidates:
            for failed in self.fail(state, root, f"no {pattern.cls.opname} within {depth} steps of the shared value"):
                self.note(failed)
        for op in candidates:
            for matched in self.consume(pattern, op, state):
                yield from self.further_roots(index + 1, matched)

    def anchored(self, pattern: OpPattern, state: State) -> bool:
        """Whether a failure has left enough to find a further root from."""
        try:
            anchor(pattern, state.bindings, state.ops)
        except PatternError:
            return False
        return True

    def known_value(self, node: Pattern, state: State) -> Value | None:
        if isinstance(node, Variable):
            found = state.bindings[node.name]
            return found if isinstance(found, Value) else None
        assert isinstance(node, OpPattern)
        op = state.ops[node]
        return op.results[0] if op is not None else None

    def value(self, pattern: Pattern, value: Value | None, reader: Op, state: State) -> States:
        """Match the operand `value` of `reader`."""
        self.patience -= self.tolerant
        if self.patience < 0:
            self.note(state)
            return
        if isinstance(pattern, Optional):
            assert isinstance(pattern.inner, Variable)
            yield from self.bind(pattern.inner, value, reader, state)
            return
        if value is None:
            yield from self.fail(state, reader, "an optional operand is missing")
            return
        match pattern:
            case Variable():
                yield from self.bind(pattern, value, reader, state)
            case Named():
                for inner in self.value(pattern.inner, value, reader, state):
                    yield from self.bind(pattern.variable, value, reader, inner)
            case Number():
                yield from self.number(pattern, value, reader, state)
            case OpPattern():
                yield from self.producer(pattern, 0, value, reader, state)
            case Result():
                yield from self.producer(pattern.op, pattern.index, value, reader, state)
            case Maybe():
                yield from self.maybe(pattern, value, reader, state)

    def bind(self, variable: Variable, thing: object, op: Op, state: State) -> States:
        name = variable.name
        if name in state.bindings:
            known = state.bindings[name]
            same = thing is known if isinstance(thing, Value) or isinstance(known, Value) else thing == known
            if not same:
                found = _producer(thing) if isinstance(thing, Value) else repr(thing)
                before = _producer(known) if isinstance(known, Value) else repr(known)
                yield from self.fail(state, op, f"{name} is {found} here, but {before} elsewhere")
                return
        if variable.where is not None:
            reason = refusal(variable.where(thing))
            if reason is not None:
                yield from self.fail(state, op, f"{name}: {reason}" if name else reason)
                return
        yield state if name in state.bindings else state.bind(name, thing)

    def number(self, pattern: Number, value: Value, reader: Op, state: State) -> States:
        op = value.op
        if not isinstance(op, Constant):
            wanted = "a constant" if pattern.value is None else f"the constant {pattern.value}"
            yield from self.fail(state, op or reader, f"expected {wanted}, found {_producer(value)}")
        elif not pattern.accepts(op.value):
            yield from self.fail(state, reader, f"the constant {op.value} is not {pattern.value}")
        else:
            state = state._replace(matched=state.matched | {pattern}, constants=(*state.constants, op))
            if pattern.variable is None:
                yield state
            else:
                yield from self.bind(pattern.variable, op.value, reader, state)

    def producer(self, pattern: OpPattern, index: int, value: Value, reader: Op, state: State) -> States:
        op = value.op
        if pattern in state.ops:
            if op is not state.ops[pattern]:
                reason = f"another {pattern.cls.opname} is read here than elsewhere"
                yield from self.fail(state, reader, reason)
            elif op is None or op.results[index] is not value:
                yield from self.fail(state, reader, f"not result {index} of {pattern.cls.opname}")
            else:
                yield state
            return
        if op is None or type(op) is not pattern.cls:
            found = f"expected {pattern.cls.opname}, found {_producer(value)}"
            for failed in self.fail(state, op or reader, found):
                # The rest may still fit below the wrong op; if it does, this is the way that came furthest.
                if op is not None and len(op.operands) == len(pattern.operands) and not pattern.cls.commutative:
                    yield from self.operands(pattern, op, op.operands, failed)
                yield failed
            return
        if not (index < len(op.results) and op.results[index] is value):
            yield from self.fail(state, op, f"not result {index} of {pattern.cls.opname}")
            return
        for used in self.uses(pattern, op, state):
            yield from self.consume(pattern, op, used)

    def uses(self, pattern: OpPattern, op: Op, state: State) -> States:
        """What can be said of the uses before everything has matched."""
        limit = self.parents[pattern]
        uses = sum(len(result.uses) for result in op.results)
        if not pattern.consumed or pattern in self.form.roots or len(op.results) > 1 or uses <= limit:
            yield state
        else:
            yield from self.fail(state, op, f"the value of {op.opname} has {uses} uses, the pattern wants {limit}")

    def consume(self, pattern: OpPattern, op: Op, state: State) -> States:
        """Match attributes and operands of `op`, which is of the right class."""
        states = [state._replace(ops={**state.ops, pattern: op}, matched=state.matched | {pattern})]
        for attribute in pattern.attributes:
            found = getattr(op, attribute.name)
            following: list[State] = []
            for each in states:
                if isinstance(attribute.wanted, Variable):
                    following.extend(self.bind(attribute.wanted, found, op, each))
                elif attribute.accepts(op):
                    following.append(each)
                else:
                    reason = f"{attribute.name} of {op.opname} is {found}, the pattern wants {attribute.wanted}"
                    less = each._replace(matched=each.matched - {pattern})
                    following.extend(self.fail(less, op, reason))
            states = following
        orders = [op.operands]
        if pattern.cls.commutative and pattern.operands[0] is not pattern.operands[1]:
            orders.append(op.operands[::-1])
        for each in states:
            for order in orders:
                yield from self.operands(pattern, op, order, each)

    def operands(self, pattern: OpPattern, op: Op, values: tuple[Value | None, ...], state: State) -> States:
        wanted = pattern.operands
        rest = next((i for i, w in enumerate(wanted) if isinstance(w, Rest)), None)
        fixed = len(wanted) - (rest is not None)
        if len(values) < fixed or (rest is None and len(values) > fixed):
            yield from self.fail(state, op, f"{op.opname} has {len(values)} operands, the pattern wants {fixed}")
            return
        slots: list[Any] = list(values)
        if rest is not None:
            stop = len(values) - (fixed - rest)
            slots[rest:stop] = [values[rest:stop]]
        yield from self.each_operand(pattern, op, slots, matching_order(wanted), state)

    def each_operand(self, pattern: OpPattern, op: Op, slots: list[Any], order: list[int], state: State) -> States:
        if not order:
            yield state
            return
        index, *later = order
        wanted, value = pattern.operands[index], slots[index]
        if wanted is None:
            if value is None:
                matched: Iterable[State] = [state]
            else:
                name = op.operand_names[index]
                matched = self.fail(state, op, f"the operand {name!r} is there, the pattern mentions none")
        elif isinstance(wanted, Rest):
            matched = self.bind(wanted.variable, value, op, state)
        else:
            matched = self.value(wanted, value, op, state)
        for each in matched:
            yield from self.each_operand(pattern, op, slots, later, each)

    def maybe(self, pattern: Maybe, value: Value, reader: Op, state: State) -> States:
        wrapper, op = pattern.wrapper, value.op
        if wrapper in state.ops:
            known = state.ops[wrapper]
            if known is None:
                yield from self.value(pattern.inner, value, reader, state)
            elif op is not known:
                yield from self.fail(state, reader, f"another {wrapper.cls.opname} is read here than elsewhere")
            else:
                yield from self.value(pattern.inner, known.operands[0], known, state)
            return
        flag = "" if pattern.flag is None else pattern.flag.name
        if op is not None and type(op) is wrapper.cls:
            for used in self.uses(wrapper, op, state):
                yield from self.consume(wrapper, op, used.bind(flag, True))
        absent = state._replace(ops={**state.ops, wrapper: None}).bind(flag, False)
        for attribute in wrapper.attributes:
            if isinstance(attribute.wanted, Variable):
                absent = absent.bind(attribute.wanted.name, None)
        yield from self.value(pattern.inner, value, reader, absent)

    # The end

    def finish(self, root: Op, state: State) -> bool:
        """Every node has matched: the checks that need all of them."""
        form, ops = self.form, state.ops
        everything = tuple(op for op in ops.values() if op is not None)
        for pattern, op in ops.items():
            if op is None or not pattern.consumed or pattern in form.roots:
                continue
            if not inside(op, everything):
                outside = next(user for r in op.results for user in r.uses if user not in everything)
                reason = f"the value of {op.opname} is also used outside the match, by {place_of(outside)}"
                self.note(state._replace(matched=state.matched - {pattern}, failure=Failure(op, reason)))
                return False
        roots = [ops[pattern] for pattern in form.roots]
        if len(roots) > 1:
            for pattern, op in ops.items():
                if pattern not in form.roots and op in roots:
                    reason = f"one {op.opname if op else 'op'} is both a root and an inner op"
                    self.note(state._replace(failure=Failure(root, reason)))
                    return False
            if len(set(roots)) < len(roots):
                self.note(state._replace(failure=Failure(root, "two roots are one op")))
                return False
        match = object.__new__(self.matches)
        match.root = root
        rest = tuple(op for op in ops.values() if op not in roots)
        match._matched = (*roots, *rest, *state.constants)
        captures = {**form.flags, **state.bindings}
        for variable, pattern in form.root_captures:
            made = ops[pattern]
            captures[variable.name] = made.results[0] if made else None
        for name in self.matches.names:
            setattr(match, name, captures.get(name))
        if self.where is not None:
            reason_given = refusal(self.where(match))
            if reason_given is not None:
                self.note(state._replace(failure=Failure(root, f"where: {reason_given}")))
                return False
        self.match = match
        return True
