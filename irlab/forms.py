"""What is known of a pattern before any graph: its forms, and how each is searched.

Choices that a loop cannot express (`any_of` above all) are expanded: a pattern has several *forms*, tried in order. The
compiled matcher (matching/) and the explaining one (explain/) both work on forms, in the order given here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Final, TypeAlias

from .ir import Op, Value
from .ops.literals import Constant
from .pattern import PatternError, Variable
from .pattern.nodes import AnyOf, Maybe, Named, Number, OpPattern, Optional, Pattern, Rest, Result
from .pattern.walk import variable_counts, walk

MAX_FORMS: Final = 256


@dataclass
class Form:
    """A pattern without choices, except the simple `maybe` and `optional`. `flags` are captures known beforehand."""

    roots: tuple[OpPattern, ...]
    flags: dict[str, bool]
    root_captures: list[tuple[Variable, OpPattern]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def is_free(self, pattern: Pattern | None) -> bool:
        """Whether `pattern` accepts any value, and nothing else depends on which."""
        return isinstance(pattern, Variable) and pattern.where is None and self.counts[pattern.name] == 1


def forms(patterns: tuple[Pattern, ...]) -> list[Form]:
    """The forms of a pattern, in the order in which they are tried."""
    found: list[Form] = []
    for roots, flags in _expand(patterns, {}):
        if len(found) == MAX_FORMS:
            raise PatternError(f"the pattern has more than {MAX_FORMS} alternatives", "split it into several rules")
        found.append(_form(roots, flags))
    return found


def _form(roots: tuple[Pattern, ...], flags: dict[str, bool]) -> Form:
    ops: list[OpPattern] = []
    captures: list[tuple[Variable, OpPattern]] = []
    for pattern in roots:
        outer = []
        while isinstance(pattern, Named):
            outer.append(pattern.variable)
            pattern = pattern.inner
        if not isinstance(pattern, OpPattern):
            raise PatternError(f"a pattern must begin with an op, not with {pattern!r}")
        ops.append(pattern)
        captures += [(variable, pattern) for variable in outer]
    return Form(tuple(ops), flags, captures, variable_counts(roots))


def _expand(
    roots: tuple[Pattern, ...], flags: dict[str, bool]
) -> Iterator[tuple[tuple[Pattern, ...], dict[str, bool]]]:
    choice = _first_choice(roots)
    if choice is None:
        yield roots, flags
        return
    for pick, flag in _options(choice):
        yield from _expand(_substitute(roots, choice, pick), {**flags, **flag})


def _first_choice(roots: tuple[Pattern, ...]) -> Pattern | None:
    counts = variable_counts(roots)
    for node in walk(roots):
        match node:
            case AnyOf():
                return node
            case Maybe() if _outermost(node, roots) or not _is_simple(node, counts):
                return node
            case Optional(inner=Variable(where=None, name=name)) if counts[name] == 1:
                continue
            case Optional():
                return node
    return None


def _outermost(node: Pattern, roots: tuple[Pattern, ...]) -> bool:
    for root in roots:
        while isinstance(root, Named):
            root = root.inner
        if root is node:
            return True
    return False


def _is_simple(maybe: Maybe, counts: Counter[str]) -> bool:
    """Whether a loop over "inside the wrapper, as it is" will do: a wrapper of one operand that binds nothing that
    others depend on."""
    wrapper = maybe.wrapper
    return (
        len(wrapper.operands) == 1
        and len(wrapper.cls.operand_names) == 1
        and not isinstance(wrapper.operands[0], Rest)
        and has_one_result(wrapper.cls)
        and all(
            counts[a.wanted.name] == 1 and a.wanted.where is None
            for a in wrapper.attributes
            if isinstance(a.wanted, Variable)
        )
        and (maybe.flag is None or counts[maybe.flag.name] == 1)
    )


def _options(choice: Pattern) -> list[tuple[Pattern | None, dict[str, bool]]]:
    match choice:
        case AnyOf():
            return [(alternative, {}) for alternative in choice.alternatives]
        case Maybe(flag=None):
            return [(choice.wrapper, {}), (choice.inner, {})]
        case Maybe(flag=Variable(name=name)):
            return [(choice.wrapper, {name: True}), (choice.inner, {name: False})]
        case Optional():
            return [(choice.inner, {}), (None, {})]
    raise AssertionError(choice)


def _substitute(roots: tuple[Pattern, ...], old: Pattern, new: Pattern | None) -> tuple[Pattern, ...]:
    """`roots` with `new` for `old`; what does not contain `old` stays the same object."""
    done: dict[Pattern, Pattern | None] = {old: new}

    def visit(node: Pattern) -> Pattern | None:
        if node not in done:
            children = [visit(child) for child in node.children]
            if all(a is b for a, b in zip(children, node.children)):
                done[node] = node
            elif isinstance(node, OpPattern):
                fresh = iter(children)
                operands = tuple([None if operand is None else next(fresh) for operand in node.operands])
                done[node] = OpPattern(node.cls, operands, node.attributes, node.shared)
            else:
                done[node] = node.with_children(tuple([c for c in children if c is not None]))
        return done[node]

    return tuple([visited for root in roots if (visited := visit(root)) is not None])


# What both matchers must agree on


def has_one_result(cls: type[Op]) -> bool:
    """Whether ops of this class always have exactly one result, judged by what `infer` declares."""
    declared = getattr(cls.infer, "__annotations__", {}).get("return")
    return declared == "TensorType" or getattr(declared, "__name__", "") == "TensorType"


def matching_order(operands: tuple[Pattern | None, ...]) -> list[int]:
    """The order in which operands are matched: the ones that can fail first, then plain captures."""

    def rank(pattern: Pattern | None) -> int:
        match pattern:
            case None | Number() | OpPattern() | Result():
                return 0
            case Named(inner=inner):
                return rank(inner)
            case Maybe() if rank(pattern.inner) == 0:
                return 0
            case Maybe():
                return 1
            case _:
                return 2

    return sorted(range(len(operands)), key=lambda i: rank(operands[i]))


def producers(pattern: Pattern | None) -> frozenset[type[Op]] | None:
    """The classes that the producer of a matching value may have; None for any producer, or none."""
    match pattern:
        case Number():
            return frozenset({Constant})
        case OpPattern(cls=cls) | Result(op=OpPattern(cls=cls)):
            return frozenset({cls})
        case Named(inner=inner):
            return producers(inner)
        case Maybe():
            inner_classes = producers(pattern.inner)
            return None if inner_classes is None else inner_classes | {pattern.wrapper.cls}
    return None


Outline: TypeAlias = "type | tuple[Any, ...]"
"""The class of an op (NoneType for no op); with those of the producers of its operands behind it, if they are known."""


def outline(op: Op, levels: int) -> Outline:
    """The outline of an op with so many levels of producers."""
    parts: list[Outline] = [type(op)]
    for value in op.operands:
        producer = None if value is None else value.op
        if producer is None:
            parts.append(NoneType)
        elif levels > 2:
            parts.append(outline(producer, levels - 1))
        else:
            parts.append((type(producer), *[NoneType if v is None else type(v.op) for v in producer.operands]))
    return tuple(parts)


def admits(pattern: Pattern | None, of: Outline) -> bool:
    """Whether `pattern` could match the value of an op of this outline. False only if it cannot."""
    cls, *below = of if isinstance(of, tuple) else (of,)
    match pattern:
        case None:
            return cls is NoneType
        case Number():
            return cls is Constant
        case Named():
            return admits(pattern.inner, of)
        case Result():
            return admits(pattern.op, of)
        case Maybe():
            return admits(pattern.wrapper, of) or admits(pattern.inner, of)
        case OpPattern():
            if cls is not pattern.cls:
                return False
            if not isinstance(of, tuple) or any(isinstance(operand, Rest) for operand in pattern.operands):
                return True
            orders = [below, below[::-1]] if pattern.cls.commutative else [below]
            return len(below) == len(pattern.operands) and any(all(map(admits, pattern.operands, o)) for o in orders)
    return True


def reach(value: Value | None, cls: type[Op], depth: int) -> list[Op]:
    """The ops of class `cls` that read `value` within `depth` steps, nearest first."""
    found: dict[Op, None] = {}
    frontier = [] if value is None else [value]
    for _ in range(depth):
        users = {user: None for v in frontier for user in v.uses}
        found.update((user, None) for user in users if type(user) is cls)
        frontier = [result for user in users for result in user.results]
    return list(found)


def anchor(root: OpPattern, bound: Mapping[str, object], ops: Mapping[OpPattern, object]) -> tuple[Pattern, int]:
    """The node of `root` nearest to it that an earlier root has bound, and how many steps below `root` it is."""
    queue: deque[tuple[Pattern, int]] = deque([(root, 0)])
    while queue:
        node, depth = queue.popleft()
        if (isinstance(node, Variable) and node.name in bound) or (isinstance(node, OpPattern) and node in ops):
            return node, depth
        # An optional wrapper may be missing: nothing can be found from it.
        below = (node.inner, depth + 2) if isinstance(node, Maybe) else None
        queue.extend([below] if below else [(child, depth + 1) for child in node.children])
    raise PatternError(f"the root {root!r} shares no value with the roots before it", "repeat a variable in it")


def inside(op: Op, matched: tuple[Op | None, ...]) -> bool:
    """Whether every use of every result of `op` is by a matched op."""
    return all(user in matched for result in op.results for user in result.uses)


def parent_counts(form: Form) -> Counter[OpPattern]:
    """How many matched ops may read each inner op. A wrapper counts as a part of what reads it."""
    parents: dict[OpPattern, set[Pattern]] = {}

    def visit(child: Pattern, parent: OpPattern) -> None:
        match child:
            case OpPattern():
                parents.setdefault(child, set()).add(parent)
            case Result(op=op):
                parents.setdefault(op, set()).add(parent)
            case Named() | Optional():
                visit(child.inner, parent)
            case Maybe():
                parents.setdefault(child.wrapper, set()).add(parent)
                visit(child.inner, parent)

    nodes = walk(form.roots)
    wrappers = {node.wrapper for node in nodes if isinstance(node, Maybe)}
    for node in nodes:
        if isinstance(node, OpPattern) and node not in wrappers:
            for child in node.children:
                visit(child, node)
    return Counter({op: len(users) for op, users in parents.items()})
