"""How patterns are written: `p`, with one constructor for each op, and the forms that are no ops."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Final

from ..ir import Op
from ..opdef import OPS, FieldKind
from ..ops import call, control, nn, prim  # imported so that OPS is filled
from ..ops.literals import Number as PlainNumber
from .attributes import Attribute
from .nodes import (
    RELATIVE_TOLERANCE,
    AnyOf,
    Maybe,
    Number,
    OpPattern,
    Optional,
    Pattern,
    PatternError,
    Predicate,
    Rest,
    Variable,
)

DIALECTS: Final = (prim, nn, control, call)

MAX_CHAIN: Final = 4
"""The longest `p.chain`: four terms can be joined in 15 ways, five in 105."""


def as_pattern(thing: object) -> Pattern:
    """A number stands for a constant."""
    if isinstance(thing, Pattern):
        return thing
    if isinstance(thing, (bool, int, float)):
        return Number(thing)
    raise PatternError(f"{thing!r} is no pattern", "use variables, numbers and calls of p")


def build(cls: type[Op], positional: tuple[object, ...], keywords: dict[str, object]) -> OpPattern:
    """The pattern `cls(...)`, with arguments in the order of the op's own constructor."""
    given: dict[str, object] = {}
    waiting = list(positional)
    for field in cls.fields:
        if not waiting:
            break
        if field.kind is FieldKind.VARIADIC and not isinstance(waiting[0], (tuple, list)):
            given[field.name], waiting = tuple(waiting), []
        else:
            given[field.name] = waiting.pop(0)
    if waiting:
        raise PatternError(f"{cls.opname} takes {len(cls.fields)} arguments, {len(positional)} were given")
    known = [field.name for field in cls.fields]
    for name, wanted in keywords.items():
        if name in given:
            raise PatternError(f"{cls.opname}: {name!r} is given twice")
        if name not in known:
            raise PatternError(f"{cls.opname} has no field {name!r}", _suggest(name, known))
        given[name] = wanted

    operands: list[Pattern | None] = []
    attributes: list[Attribute] = []
    for field in cls.fields:
        if field.kind in (FieldKind.ATTRIBUTE, FieldKind.REGION):
            if field.name in given:
                attributes.append(Attribute(cls, field.name, field.annotation, given[field.name]))
        elif field.kind is FieldKind.OPTIONAL:
            operand = given.get(field.name)
            operands.append(None if operand is None else as_pattern(operand))
        elif field.name not in given:
            raise PatternError(f"{cls.opname}: operand {field.name!r} is missing", "p.var() matches anything")
        elif field.kind is FieldKind.VARIADIC:
            several = given[field.name]
            operands.extend(map(as_pattern, several if isinstance(several, (tuple, list)) else (several,)))
        else:
            operands.append(as_pattern(given[field.name]))
    if sum(isinstance(operand, Rest) for operand in operands) > 1:
        raise PatternError(f"{cls.opname}: only one `*rest` may capture the remaining operands")
    return OpPattern(cls, tuple(operands), tuple(attributes))


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {close[0]!r}?" if close else ""


class OpConstructor:
    """Builds patterns of one op class: what `p.rms_norm` is."""

    __slots__ = ("cls",)

    def __init__(self, cls: type[Op]) -> None:
        self.cls = cls

    def __call__(self, *operands: Any, **attributes: Any) -> OpPattern:
        return build(self.cls, operands, attributes)

    def __repr__(self) -> str:
        return f"<patterns of {self.cls.opname}>"


def _binary_trees(op: OpConstructor, terms: list[Pattern]) -> list[Pattern]:
    """Every way of joining `terms` by a commutative op; the order of two operands is the matcher's business."""
    first, *others = terms
    if not others:
        return [first]
    found: list[Pattern] = []
    # The part with the first term takes any choice of the others but all of them; the other part takes what is left.
    for choice in range(2 ** len(others) - 1):
        left = [term for i, term in enumerate(others) if choice >> i & 1]
        right = [term for i, term in enumerate(others) if not choice >> i & 1]
        found += [op(a, b) for a in _binary_trees(op, [first, *left]) for b in _binary_trees(op, right)]
    return found


class Dialect:
    """The pattern constructors of the ops whose names start with `prefixes`, earlier ones first."""

    __slots__ = ("_prefixes",)

    def __init__(self, *prefixes: str) -> None:
        self._prefixes = prefixes

    def __getattr__(self, name: str) -> OpConstructor:
        # A trailing underscore keeps Python's keywords apart: p.and_, p.not_.
        stem = name.rstrip("_")
        for prefix in self._prefixes:
            cls = OPS.get(prefix + stem)
            if cls is not None:
                return OpConstructor(cls)
        known = [n.removeprefix(prefix) for prefix in self._prefixes for n in OPS if n.startswith(prefix)]
        raise AttributeError(f"no op is called {name!r}. {_suggest(stem, known)}".rstrip())


class Patterns(Dialect):
    """The pattern constructors: one per op, by the name of its function, and the forms below."""

    __slots__ = ()

    prim: Final = Dialect("prim.")
    nn: Final = Dialect("nn.")
    ctl: Final = Dialect("ctl.")

    def var(self, name: str = "", where: Predicate | None = None) -> Variable:
        """A variable, captured as `name`; `where` says whether the value, number or attribute is acceptable."""
        return Variable(name, where)

    def const(self, of: Variable | PlainNumber | None = None, *, tolerance: float = RELATIVE_TOLERANCE) -> Number:
        """A constant: its number captured by a variable, or a number to be met within a relative `tolerance`."""
        return Number(None, of) if isinstance(of, Variable) else Number(of, None, tolerance)

    def maybe(
        self, wrapper: OpConstructor, inner: Any, *operands: Any, flag: Variable | str | None = None, **attributes: Any
    ) -> Pattern:
        """`wrapper(inner, ...)` or `inner` itself. `flag` captures whether the wrapper was there, as a bool."""
        return Maybe(wrapper(inner, *operands, **attributes), Variable(flag) if isinstance(flag, str) else flag)

    def any_of(self, *alternatives: Any) -> Pattern:
        """The first of `alternatives` that matches."""
        return AnyOf(tuple(map(as_pattern, alternatives)))

    def chain(self, op: OpConstructor, *terms: Any) -> Pattern:
        """`terms` joined by a commutative `op` such as p.mul, in any order and association."""
        if not op.cls.commutative:
            raise PatternError(f"{op.cls.opname} is not commutative", "a chain has no order")
        if not 2 <= len(terms) <= MAX_CHAIN:
            raise PatternError(f"a chain of {len(terms)} terms", f"it takes 2 to {MAX_CHAIN}: the forms multiply")
        trees = _binary_trees(op, list(map(as_pattern, terms)))
        return trees[0] if len(trees) == 1 else AnyOf(tuple(trees))

    def optional(self, operand: Any) -> Pattern:
        """In the place of an optional operand: there and matching, or missing."""
        return Optional(as_pattern(operand))

    def shared(self, pattern: Pattern) -> Pattern:
        """`pattern`, whose value may also be used outside the match."""
        return pattern.multi_use()

    def op(self, cls: type[Op] | str, *operands: Any, **attributes: Any) -> OpPattern:
        """An op given by its class, or by its name in IR text."""
        if isinstance(cls, str) and cls not in OPS:
            raise PatternError(f"no op is called {cls!r}", _suggest(cls, OPS))
        declared: type[Op] = OPS[cls] if isinstance(cls, str) else cls
        return build(declared, operands, attributes)


p: Final = Patterns("prim.", "nn.", "ctl.", "")
