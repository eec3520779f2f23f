"""The nodes that patterns are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ..errors import IRError
from ..ir import Op
from ..ops import prim
from ..ops.literals import Number as PlainNumber

if TYPE_CHECKING:
    from .attributes import Attribute

Predicate: TypeAlias = Callable[[Any], "bool | str"]
"""True where the matched thing is acceptable; False or the reason (a string) where it is not."""

RELATIVE_TOLERANCE: Final = 1e-5
"""How far a float constant may lie from the number in a pattern."""


def refusal(verdict: object) -> str | None:
    """The reason why a predicate refused, or None where it accepted."""
    if isinstance(verdict, str):
        return verdict
    return None if verdict else "the condition does not hold"


class PatternError(IRError):
    """A pattern that makes no sense, found when it is built or compiled."""

    exit_status = 1


class Pattern:
    """A pattern node: what a value must be. One object that stands twice is one value."""

    __slots__ = ()

    @property
    def children(self) -> tuple[Pattern, ...]:
        """The patterns of the values that this one reads."""
        return ()

    def with_children(self, children: tuple[Pattern, ...]) -> Pattern:
        """The same node over other children."""
        return self

    def multi_use(self) -> Pattern:
        """The same pattern, but its value may also be used outside the match."""
        return self

    def named(self, name: str | Variable) -> Pattern:
        """The same pattern, capturing the value as `name`."""
        return Named(self, name if isinstance(name, Variable) else Variable(name))

    def __add__(self, other: object) -> Pattern:
        return _call(prim.Add, self, other)

    def __radd__(self, other: object) -> Pattern:
        return _call(prim.Add, other, self)

    def __sub__(self, other: object) -> Pattern:
        return _call(prim.Sub, self, other)

    def __rsub__(self, other: object) -> Pattern:
        return _call(prim.Sub, other, self)

    def __mul__(self, other: object) -> Pattern:
        return _call(prim.Mul, self, other)

    def __rmul__(self, other: object) -> Pattern:
        return _call(prim.Mul, other, self)

    def __truediv__(self, other: object) -> Pattern:
        return _call(prim.Div, self, other)

    def __rtruediv__(self, other: object) -> Pattern:
        return _call(prim.Div, other, self)

    def __floordiv__(self, other: object) -> Pattern:
        return _call(prim.FloorDiv, self, other)

    def __mod__(self, other: object) -> Pattern:
        return _call(prim.Mod, self, other)

    def __pow__(self, other: object) -> Pattern:
        return _call(prim.Pow, self, other)

    def __matmul__(self, other: object) -> Pattern:
        return _call(prim.MatMul, self, other)

    def __neg__(self) -> Pattern:
        return _call(prim.Neg, self)

    def __bool__(self) -> bool:
        raise PatternError("a pattern has no truth value", "write p.any_of(a, b) rather than `a or b`")


class Variable(Pattern):
    """Any value, number or attribute, captured under a name; "" captures nothing."""

    __slots__ = ("name", "where")

    def __init__(self, name: str, where: Predicate | None = None) -> None:
        if name and not name.isidentifier():
            raise PatternError(f"a variable cannot be called {name!r}", "use a Python identifier")
        self.name, self.where = name, where

    def __iter__(self) -> Iterator[Rest]:
        """`*x` in an op pattern captures the remaining operands."""
        yield Rest(self)

    def __repr__(self) -> str:
        return self.name or "_"


@dataclass(slots=True, eq=False, repr=False)
class Rest(Pattern):
    """The remaining operands of a variadic op, captured as a tuple of values."""

    variable: Variable

    def __repr__(self) -> str:
        return f"*{self.variable!r}"


class Number(Pattern):
    """A constant op: of the number `value`, or of any number where that is None; captured by `variable`."""

    __slots__ = ("high", "low", "value", "variable")

    def __init__(
        self, value: PlainNumber | None, variable: Variable | None = None, tolerance: float = RELATIVE_TOLERANCE
    ) -> None:
        self.value, self.variable = value, variable
        slack = abs(value) * tolerance if isinstance(value, float) and math.isfinite(value) else 0
        self.low = None if value is None else value - slack
        self.high = None if value is None else value + slack

    def accepts(self, number: PlainNumber) -> bool:
        """Whether a constant of this number matches."""
        return self.low is None or self.high is None or self.low <= number <= self.high

    def __repr__(self) -> str:
        if self.value is not None:
            return repr(self.value)
        return "const()" if self.variable is None else f"const({self.variable!r})"


@dataclass(slots=True, eq=False, repr=False)
class OpPattern(Pattern):
    """An op of class `cls` whose operands and attributes match; as a value, its first result.

    `operands` has one pattern per operand slot; None where an optional operand must be missing; a `Rest` where a
    variadic op takes any number.
    """

    cls: type[Op]
    operands: tuple[Pattern | None, ...]
    attributes: tuple[Attribute, ...]
    shared: bool = False

    @property
    def children(self) -> tuple[Pattern, ...]:
        return tuple([operand for operand in self.operands if operand is not None])

    def with_children(self, children: tuple[Pattern, ...]) -> Pattern:
        fresh = iter(children)
        operands = tuple([None if operand is None else next(fresh) for operand in self.operands])
        return OpPattern(self.cls, operands, self.attributes, self.shared)

    def multi_use(self) -> OpPattern:
        return OpPattern(self.cls, self.operands, self.attributes, True)

    def __getitem__(self, index: int) -> Result:
        """The pattern of result `index` of this op."""
        return Result(self, index)

    __iter__ = None  # else Python would iterate by __getitem__, for ever

    @property
    def consumed(self) -> bool:
        """Whether the values of this op may not be used outside the match. Ops that read nothing cost nothing."""
        return not self.shared and bool(self.cls.operand_names)

    def __repr__(self) -> str:
        parts = [*("none" if o is None else repr(o) for o in self.operands), *map(repr, self.attributes)]
        return f"{self.cls.opname}({', '.join(parts)})"


@dataclass(slots=True, eq=False, repr=False)
class Result(Pattern):
    """Result `index` of an op with several."""

    op: OpPattern
    index: int

    @property
    def children(self) -> tuple[Pattern, ...]:
        return (self.op,)

    def with_children(self, children: tuple[Pattern, ...]) -> Pattern:
        (op,) = children
        assert isinstance(op, OpPattern)
        return Result(op, self.index)

    def multi_use(self) -> Result:
        return Result(self.op.multi_use(), self.index)

    def __repr__(self) -> str:
        return f"{self.op!r}[{self.index}]"


@dataclass(slots=True, eq=False, repr=False)
class Maybe(Pattern):
    """`wrapper`, an op over another pattern, or only that other pattern. `flag` captures which."""

    wrapper: OpPattern
    flag: Variable | None

    @property
    def inner(self) -> Pattern:
        inner = self.wrapper.operands[0]
        assert inner is not None
        return inner

    @property
    def children(self) -> tuple[Pattern, ...]:
        return (self.wrapper,)

    def with_children(self, children: tuple[Pattern, ...]) -> Pattern:
        (wrapper,) = children
        assert isinstance(wrapper, OpPattern)
        return Maybe(wrapper, self.flag)

    def multi_use(self) -> Pattern:
        return Maybe(self.wrapper.multi_use(), self.flag)

    def __repr__(self) -> str:
        return f"maybe({self.wrapper!r})"


@dataclass(slots=True, eq=False, repr=False)
class AnyOf(Pattern):
    """The first alternative that matches."""

    alternatives: tuple[Pattern, ...]

    @property
    def children(self) -> tuple[Pattern, ...]:
        return self.alternatives

    def with_children(self, children: tuple[Pattern, ...]) -> Pattern:
        return AnyOf(children)

    def multi_use(self) -> Pattern:
        return AnyOf(tuple([a.multi_use() for a in self.alternatives]))

    def __repr__(self) -> str:
        return f"any_of({', '.join(map(repr, self.alternatives))})"


@dataclass(slots=True, eq=False, repr=False)
class Named(Pattern):
    """What `inner` matches, captured by `variable` as well."""

    inner: Pattern
    variable: Variable

    @property
    def children(self) -> tuple[Pattern, ...]:
        return (self.inner,)

    def with_children(self, children: tuple[Pattern, ...]) -> Pattern:
        return Named(children[0], self.variable)

    def multi_use(self) -> Pattern:
        return Named(self.inner.multi_use(), self.variable)

    def __repr__(self) -> str:
        return f"{self.inner!r}.named({self.variable.name!r})"


@dataclass(slots=True, eq=False, repr=False)
class Optional(Pattern):
    """An operand that may be missing; the variables of `inner` are None then."""

    inner: Pattern

    @property
    def children(self) -> tuple[Pattern, ...]:
        return (self.inner,)

    def with_children(self, children: tuple[Pattern, ...]) -> Pattern:
        return Optional(children[0])

    def __repr__(self) -> str:
        return f"optional({self.inner!r})"


def _call(cls: type[Op], *operands: object) -> Pattern:
    from .constructors import build  # on top of this module; operators are a shorthand for it

    return build(cls, operands, {})
