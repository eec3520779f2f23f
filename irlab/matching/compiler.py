"""How a pattern becomes a matcher: Python source, compiled once per rule, that walks an op and its producers.

A matcher is a function `match(op) -> Match | None`. Its source is straight-line. Loops try both orders of a
commutative op, or a value with and without its optional wrapper. Tracebacks show the source; `Matcher.source` is it.
A pattern with choices that such loops cannot express has several forms (forms.py), each with a matcher of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..forms import (
    Form,
    Outline,
    admits,
    anchor,
    forms,
    has_one_result,
    inside,
    matching_order,
    parent_counts,
    producers,
    reach,
)
from ..ir import Op
from ..ops.literals import Constant
from ..pattern import PatternError, Variable
from ..pattern.nodes import Maybe, Named, Number, OpPattern, Optional, Pattern, Predicate, Rest, Result, refusal
from ..pattern.walk import variables
from .match import Match, match_class
from .source import Continuation, Source


@dataclass
class Matcher:
    """A compiled form: `match(op)` for ops of class `cls`."""

    cls: type[Op]
    match: Callable[[Any], Match | None]
    source: str
    root: OpPattern

    def possible(self, outline: Outline) -> bool:
        """Whether an op of this outline could match."""
        return admits(self.root, outline)


def compile_pattern(patterns: tuple[Pattern, ...], name: str, where: Predicate | None = None) -> list[Matcher]:
    """The matchers of a pattern, in the order in which they are tried. `where` judges complete matches; the next
    possible match is tried where it refuses."""
    if not patterns:
        raise PatternError("the pattern is empty")
    names = tuple(dict.fromkeys(v.name for v in variables(patterns) if v.name))
    matches = match_class(names, len(patterns))
    return [
        _Writer(form, matches, where).matcher(f"{name}#{i}" if i else name) for i, form in enumerate(forms(patterns))
    ]


class _Writer(Source):
    """Writes the source of one matcher. Methods take the continuation that writes what follows a success."""

    def __init__(self, form: Form, matches: type[Match], where: Predicate | None) -> None:
        super().__init__(
            "op",
            {
                "new": object.__new__,
                "M": matches,
                "Constant": Constant,
                "refusal": refusal,
                "inside": inside,
                "reach": reach,
            },
        )
        self.form, self.matches, self.where = form, matches, where
        self.bound: dict[str, str] = {}
        self.ops: dict[OpPattern, str] = {}  # the local that holds the matched op
        self.matched: list[str] = []  # locals of matched ops; one may hold None, for an absent wrapper
        self.checks: list[str] = []  # conditions on uses that need every matched op
        self.parents = parent_counts(form)

    def matcher(self, name: str) -> Matcher:
        self.root(0)
        match, source = self.compile("match", f"pattern {name}")
        root = self.form.roots[0]
        return Matcher(root.cls, match, source, root)

    def root(self, index: int) -> None:
        """Match root number `index` and those after it, then finish."""
        if index == len(self.form.roots):
            self.finish()
            return
        pattern = self.form.roots[index]
        then: Continuation = lambda: self.root(index + 1)
        if index == 0:
            self.consume(pattern, "op", then)
        elif pattern in self.ops:
            then()
        else:
            self.search(pattern, then)

    def search(self, pattern: OpPattern, then: Continuation) -> None:
        """Find a further root from the values that are known by now."""
        node, depth = anchor(pattern, self.bound, self.ops)
        if isinstance(node, Variable):
            known = self.bound[node.name]
        else:
            assert isinstance(node, OpPattern)
            known = f"{self.ops[node]}.results[0]"
        op = self.fresh("o")

        candidates = f"reach({known}, {self.constant(pattern.cls)}, {depth})"
        self.loop([op], candidates, lambda: self.consume(pattern, op, then))

    def value(self, pattern: Pattern, val: str, then: Continuation) -> None:
        """Match the value in local `val`."""
        match pattern:
            case Variable():
                self.bind(pattern, val, "is", then)
            case Named():
                self.value(pattern.inner, val, lambda: self.bind(pattern.variable, val, "is", then))
            case Optional(inner=Variable() as variable):
                self.bind(variable, val, "is", then)
            case Number():
                self.number(pattern, val, then)
            case OpPattern():
                self.producer(pattern, 0, val, then)
            case Result():
                self.producer(pattern.op, pattern.index, val, then)
            case Maybe():
                self.maybe(pattern, val, then)
            case _:
                raise PatternError(f"{pattern!r} cannot stand here")

    def bind(self, variable: Variable, expression: str, equality: str, then: Continuation) -> None:
        name = variable.name
        known = self.bound.get(name)
        if known is not None:
            self.guard(f"{expression} {equality} {known}")
        if variable.where is not None:
            self.guard(f"refusal({self.constant(variable.where)}({expression})) is None")
        if known is not None or not name:
            then()
            return
        if not expression.isidentifier():
            expression = self.assign("a", expression)
        self.bound[name] = expression
        then()
        del self.bound[name]

    def number(self, pattern: Number, val: str, then: Continuation) -> None:
        op = self.assign("o", f"{val}.op")
        condition = f"type({op}) is Constant"
        if pattern.value is not None:
            condition += f" and {self.constant(pattern.low)} <= {op}.value <= {self.constant(pattern.high)}"
        self.guard(condition)
        self.matched.append(op)
        if pattern.variable is None:
            then()
        else:
            self.bind(pattern.variable, f"{op}.value", "==", then)
        self.matched.pop()

    def producer(self, pattern: OpPattern, index: int, val: str, then: Continuation) -> None:
        """Match the op that makes `val`, which must be its result `index`."""
        one = has_one_result(pattern.cls)
        op = self.ops.get(pattern)
        known = op is not None
        if op is None:
            op = self.assign("o", f"{val}.op")
            condition = f"type({op}) is {self.constant(pattern.cls)}"
        else:
            condition = f"{val}.op is {op}"
        if one and index:
            raise PatternError(f"{pattern.cls.opname} has one result only")
        if not one:
            condition += f" and len({op}.results) > {index} and {op}.results[{index}] is {val}"
        if known:
            self.guard(condition)
            then()
            return
        early, late = self.use_conditions(pattern, val, op)
        self.guard(condition + early)
        self.checks += late
        self.consume(pattern, op, then)
        del self.checks[len(self.checks) - len(late) :]

    def use_conditions(self, pattern: OpPattern, val: str, op: str) -> tuple[str, list[str]]:
        """That the op's values have no use outside the match: what can be said at once, and what only at the end."""
        if not pattern.consumed or pattern in self.form.roots:
            return "", []
        if not has_one_result(pattern.cls):
            return "", [f"inside({op}, (MATCHED,))"]
        parents = self.parents[pattern]
        if parents == 1:
            return f" and len({val}.uses) == 1", []
        return f" and len({val}.uses) <= {parents}", [f"{val}.uses.keys() <= {{MATCHED}}"]

    def consume(self, pattern: OpPattern, op: str, then: Continuation) -> None:
        """Match attributes and operands of the op in local `op`, which is of the right class."""
        self.ops[pattern] = op
        self.matched.append(op)
        self.attributes(pattern, op, 0, lambda: self.operands(pattern, op, then))
        self.matched.pop()
        del self.ops[pattern]

    def attributes(self, pattern: OpPattern, op: str, index: int, then: Continuation) -> None:
        if index == len(pattern.attributes):
            then()
            return
        attribute = pattern.attributes[index]
        following: Continuation = lambda: self.attributes(pattern, op, index + 1, then)
        if isinstance(attribute.wanted, Variable):
            self.bind(attribute.wanted, f"{op}.{attribute.name}", "==", following)
            return
        self.guard(self.attribute_condition(pattern, index, op))
        following()

    def attribute_condition(self, pattern: OpPattern, index: int, op: str) -> str:
        attribute = pattern.attributes[index]
        if attribute.plain:
            return f"{op}.{attribute.name} == {self.constant(attribute.wanted)}"
        return f"{self.constant(attribute.accepts)}({op})"

    def operands(self, pattern: OpPattern, op: str, then: Continuation) -> None:
        wanted = pattern.operands
        if not wanted and pattern.cls.operand_names:
            self.guard(f"not {op}.operands")
        if not wanted:
            then()
            return
        names = [self.fresh("x") for _ in wanted]
        fixed = len(wanted) - sum(isinstance(w, Rest) for w in wanted)
        if fixed != len(wanted):
            self.guard(f"len({op}.operands) >= {fixed}")
        elif any(f.annotation == "tuple[Value, ...]" for f in pattern.cls.fields):
            self.guard(f"len({op}.operands) == {fixed}")
        targets = [f"*{n}" if isinstance(w, Rest) else n for n, w in zip(names, wanted)]
        if pattern.cls.commutative and wanted[0] is not wanted[1] and not self.symmetric(pattern):
            first, second = self.fresh("x"), self.fresh("x")
            self.locals += [first, second]
            self.emit(f"{first}, {second} = {op}.operands")
            self.either_order(pattern, names, first, second, lambda: self.each_operand(pattern, names, then))
        else:
            self.locals += names
            self.emit(f"{', '.join(targets)}, = {op}.operands")
            self.each_operand(pattern, names, then)

    def either_order(self, pattern: OpPattern, names: list[str], first: str, second: str, then: Continuation) -> None:
        """Match the operands of a commutative op in both orders, or in the one that their producers leave."""
        one, other = names
        left, right = map(producers, pattern.operands)
        if left is not None and right is not None and left.isdisjoint(right):
            self.emit(f"if {self.is_made_by(first, left)}:")
            self.emit(f"    {one} = {first}; {other} = {second}")
            self.emit("else:")
            self.emit(f"    {one} = {second}; {other} = {first}")
            self.locals += names
            then()
            return
        as_is, swapped = f"({first}, {second})", f"({second}, {first})"
        orders = f"({as_is}, {swapped})"
        if left is not None:
            orders = f"({orders} if {self.is_made_by(first, left)} else ({swapped},))"
        elif right is not None:
            orders = f"({orders} if {self.is_made_by(second, right)} else ({swapped},))"
        self.loop(names, orders, then)

    def is_made_by(self, val: str, classes: frozenset[type[Op]]) -> str:
        if len(classes) == 1:
            return f"type({val}.op) is {self.constant(*classes)}"
        return f"type({val}.op) in {self.constant(classes)}"

    def symmetric(self, pattern: OpPattern) -> bool:
        """Whether the other order of a commutative op would say nothing new."""
        return self.where is None and all(map(self.form.is_free, pattern.operands))

    def each_operand(self, pattern: OpPattern, names: list[str], then: Continuation) -> None:
        order = matching_order(pattern.operands)
        required = [f.annotation != "Value | None" for f in pattern.cls.fields if f.name in pattern.cls.operand_names]

        def following(position: int) -> None:
            if position == len(order):
                then()
                return
            i = order[position]
            wanted, name = pattern.operands[i], names[i]
            go_on: Continuation = lambda: following(position + 1)
            if wanted is None:
                self.guard(f"{name} is None")
                go_on()
            elif isinstance(wanted, Rest):
                self.emit(f"{name} = tuple({name})")
                self.bind(wanted.variable, name, "==", go_on)
            else:
                if i < len(required) and not required[i] and not isinstance(wanted, Optional):
                    self.guard(f"{name} is not None")
                self.value(wanted, name, go_on)

        following(0)

    def maybe(self, pattern: Maybe, val: str, then: Continuation) -> None:
        """A simple wrapper: go on with what is inside it and, unless that cannot match, with the value as it is."""
        wrapper = pattern.wrapper
        known = self.ops.get(wrapper)
        if known is not None:  # the second time: wrapped as before, or not wrapped as before
            self.guard(f"{known} is None or {val}.op is {known}")
            inner = self.assign("x", f"{val} if {known} is None else {known}.operands[0]")
            self.value(pattern.inner, inner, then)
            return
        op, inner, wrapped = self.assign("o", f"{val}.op"), self.fresh("x"), self.fresh("w")
        early, late = self.use_conditions(wrapper, val, op)
        condition = f"type({op}) is {self.constant(wrapper.cls)}{early}"
        for index, attribute in enumerate(wrapper.attributes):
            if not isinstance(attribute.wanted, Variable):
                condition += f" and {self.attribute_condition(wrapper, index, op)}"
        captures = [(a.wanted, f"{wrapped}.{a.name}") for a in wrapper.attributes if isinstance(a.wanted, Variable)]
        if pattern.flag is not None:
            captures.append((pattern.flag, ""))

        def body() -> None:
            for variable, expression in captures:
                chosen = f"None if {wrapped} is None else {expression}" if expression else f"{wrapped} is not None"
                self.bound[variable.name] = self.assign("a", chosen)
            self.ops[wrapper] = wrapped
            self.matched.append(wrapped)
            self.checks += [f"({wrapped} is None or {check})" for check in late]
            self.value(pattern.inner, inner, then)
            del self.checks[len(self.checks) - len(late) :]
            self.matched.pop()
            del self.ops[wrapper]
            for variable, _ in captures:
                del self.bound[variable.name]

        inner_classes = producers(pattern.inner)
        if inner_classes is not None and wrapper.cls not in inner_classes:
            self.emit(f"if {condition}:")
            self.emit(f"    {inner} = {op}.operands[0]; {wrapped} = {op}")
            self.emit("else:")
            self.emit(f"    {inner} = {val}; {wrapped} = None")
            self.locals += [inner, wrapped]
            body()
            return
        both = f"((({op}.operands[0], {op}), ({val}, None)) if {condition} else (({val}, None),))"
        self.loop([inner, wrapped], both, body)

    def finish(self) -> None:
        """Every node has matched: check uses and that each root stands for itself only, capture, judge."""
        roots = [self.ops[pattern] for pattern in self.form.roots]
        ops = ", ".join([*roots, *(op for op in self.matched if op not in roots)])
        for check in self.checks:
            self.guard(check.replace("MATCHED", ops))
        for pattern in self.form.roots[1:] and self.form.roots:
            root = self.ops[pattern]
            others = [op for op in self.matched if op != root]
            self.guard(f"{root} not in ({', '.join(others)},)")
        for variable, pattern in self.form.root_captures:
            self.bound[variable.name] = f"{self.ops[pattern]}.results[0]"
        self.emit("m = new(M)")
        self.emit("m.root = op")
        self.emit(f"m._matched = ({ops},)")
        for name in self.matches.names:
            known = self.bound.get(name) or repr(self.form.flags.get(name))
            self.emit(f"m.{name} = {known}")
        if self.where is not None:
            self.scope["where"] = self.where
            self.emit("verdict = where(m)")
            self.guard("verdict is True or refusal(verdict) is None")
        self.emit("return m")
