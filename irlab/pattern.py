"""The pattern language: what a piece of graph looks like, as data.

A pattern is built by calling `p` the way the graph itself would be built, with variables where anything may stand:

    p.rsqrt(x)                        the op prim.rsqrt on anything, called x
    x * p.sigmoid(x)                  operators work; a repeated variable must be the same value
    x * 0.5                           a number is a constant: floats within 1e-5 relative, integers exactly
    p.const(eps)                      any constant, its number captured as `eps`
    p.mean(x, axes=[-1])              attributes by name: a literal (axes may count from either end) ...
    p.cast(x, dtype=d)                ... or a variable, which captures the attribute ...
    p.topk(x, k=lambda k: k <= 8)     ... or a condition on it, as for p.var
    p.maybe(p.cast, x)                cast(x) or x itself; `flag=f` captures whether the cast was there
    p.any_of(p.gelu(x), p.silu(x))    the first alternative that matches; variables of the others are None
    p.chain(p.mul, x, 0.5, y)         their product in any order and association: (x * y) * 0.5, x * (y * 0.5) ...
    p.concat(a, *rest, axis=-1)       `*rest` captures the remaining operands as a tuple
    p.linear(x, w, p.optional(b))     an operand that may be missing (b is None then)
    p.topk(x, k=2)[1]                 result 1 of an op with several results (`t = p.topk(x); t[0] + t[1]`: of one op)
    p.shared(x * y), (x * y).multi_use()    this value may have uses outside the pattern
    (x * y).named("xy")               captures the value of an inner node as `xy`
    p.var("w", where=lambda w: w.type.rank == 1 or "w must be a vector")    a variable with a condition; also for
                                      captured numbers and attributes. A string is the reason for refusing
    p.op(MyOp, x), p.op("my.op", x)   an op class of yours; p.prim.add, p.nn.linear say the dialect

What is matched:

* Commutative ops match in both orders, at every level.
* An attribute that the pattern does not mention may be anything. An *optional operand* that it does not mention must be
  missing, so that no rule drops a bias it did not see.
* A rule's pattern consumes what it matches. So the value of every inner op must have no use outside the match, else the
  rewrite would compute it twice. `p.shared` lifts this. Constants and weights are free.
* One pattern object used twice stands for one value: in `n = p.cast(x); n * p.rsqrt(n)` both are the same cast.

A tuple of patterns has several roots, which match different ops; every root after the first must share a value with an
earlier one.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

from .errors import IRError
from .ir import Op
from .opdef import OPS, FieldKind, canonical_attribute
from .ops import call, control, nn, prim  # imported so that OPS is filled
from .ops.literals import Number as PlainNumber
from .types import DTYPES

__all__ = ["Pattern", "p"]

DIALECTS: Final = (prim, nn, control, call)

Predicate: TypeAlias = Callable[[Any], "bool | str"]
"""True where the matched thing is acceptable; False or the reason (a string) where it is not."""

RELATIVE_TOLERANCE: Final = 1e-5
"""How far a float constant may lie from the number in a pattern."""


MAX_CHAIN: Final = 4
"""The longest `p.chain`: four terms can be joined in 15 ways, five in 105."""


def refusal(verdict: object) -> str | None:
    """The reason why a predicate refused, or None where it accepted."""
    if isinstance(verdict, str):
        return verdict
    return None if verdict else "the condition does not hold"


class PatternError(IRError):
    """A pattern that makes no sense, found when it is built or compiled."""

    exit_status = 1


class Pattern:
    """A pattern node. Nodes are values without identity of their own, except that one object is one graph value."""

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
        return build(prim.Add, (self, other), {})

    def __radd__(self, other: object) -> Pattern:
        return build(prim.Add, (other, self), {})

    def __sub__(self, other: object) -> Pattern:
        return build(prim.Sub, (self, other), {})

    def __rsub__(self, other: object) -> Pattern:
        return build(prim.Sub, (other, self), {})

    def __mul__(self, other: object) -> Pattern:
        return build(prim.Mul, (self, other), {})

    def __rmul__(self, other: object) -> Pattern:
        return build(prim.Mul, (other, self), {})

    def __truediv__(self, other: object) -> Pattern:
        return build(prim.Div, (self, other), {})

    def __rtruediv__(self, other: object) -> Pattern:
        return build(prim.Div, (other, self), {})

    def __floordiv__(self, other: object) -> Pattern:
        return build(prim.FloorDiv, (self, other), {})

    def __mod__(self, other: object) -> Pattern:
        return build(prim.Mod, (self, other), {})

    def __pow__(self, other: object) -> Pattern:
        return build(prim.Pow, (self, other), {})

    def __matmul__(self, other: object) -> Pattern:
        return build(prim.MatMul, (self, other), {})

    def __neg__(self) -> Pattern:
        return build(prim.Neg, (self,), {})

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


class Rest(Pattern):
    """The remaining operands of a variadic op, captured as a tuple of values."""

    __slots__ = ("variable",)

    def __init__(self, variable: Variable) -> None:
        self.variable = variable

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


class Attribute:
    """What an attribute must be: a literal of the attribute's own type, a variable that captures it, or a condition."""

    __slots__ = ("accepts", "name", "plain", "wanted")

    def __init__(self, cls: type[Op], name: str, annotation: str, wanted: object) -> None:
        if isinstance(wanted, list):
            wanted = tuple(wanted)
        if annotation == "DType" and isinstance(wanted, str):
            if wanted not in DTYPES:
                raise PatternError(f"{cls.opname}: unknown dtype {wanted!r}")
            wanted = DTYPES[wanted]
        if callable(wanted):
            wanted = Variable("", _judge_attribute(f"{name} of {cls.opname}", wanted))
        self.name, self.wanted = name, wanted
        self.plain = True
        """Whether acceptance is equality with `wanted`."""
        self.accepts: Callable[[Op], bool] = lambda op: bool(getattr(op, name) == self.wanted)
        if annotation in ("Axis", "Axes") and not isinstance(wanted, Variable):
            entries = wanted if isinstance(wanted, tuple) else (wanted,)
            if all(isinstance(axis, int) and axis < 0 for axis in entries):
                self.wanted = tuple(sorted(set(entries))) if annotation == "Axes" else wanted
            else:
                self.plain = False
                self.accepts = lambda op: getattr(op, name) == canonical_attribute(op, annotation, wanted)
        elif isinstance(wanted, float):
            number = Number(wanted)
            self.plain = False
            self.accepts = lambda op: number.accepts(getattr(op, name))

    def __repr__(self) -> str:
        return f"{self.name}={self.wanted!r}"


def _judge_attribute(what: str, condition: Predicate) -> Predicate:
    """`condition`, which says what it refused where it gives no reason of its own."""

    def judge(found: Any) -> bool | str:
        verdict = condition(found)
        return verdict if isinstance(verdict, str) else bool(verdict) or f"{what} is {found}"

    return judge


class OpPattern(Pattern):
    """An op of class `cls` whose operands and attributes match; as a value, its first result.

    `operands` has one pattern per operand slot; None where an optional operand must be missing; a `Rest` where a
    variadic op takes any number.
    """

    __slots__ = ("attributes", "cls", "operands", "shared")

    def __init__(
        self,
        cls: type[Op],
        operands: tuple[Pattern | None, ...],
        attributes: tuple[Attribute, ...],
        shared: bool = False,
    ) -> None:
        self.cls, self.operands, self.attributes, self.shared = cls, operands, attributes, shared

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


class Result(Pattern):
    """Result `index` of an op with several."""

    __slots__ = ("index", "op")

    def __init__(self, op: OpPattern, index: int) -> None:
        self.op, self.index = op, index

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


class Maybe(Pattern):
    """`wrapper`, an op over another pattern, or only that other pattern. `flag` captures which."""

    __slots__ = ("flag", "wrapper")

    def __init__(self, wrapper: OpPattern, flag: Variable | None) -> None:
        self.wrapper, self.flag = wrapper, flag

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


class AnyOf(Pattern):
    """The first alternative that matches."""

    __slots__ = ("alternatives",)

    def __init__(self, alternatives: tuple[Pattern, ...]) -> None:
        self.alternatives = alternatives

    @property
    def children(self) -> tuple[Pattern, ...]:
        return self.alternatives

    def with_children(self, children: tuple[Pattern, ...]) -> Pattern:
        return AnyOf(children)

    def multi_use(self) -> Pattern:
        return AnyOf(tuple([a.multi_use() for a in self.alternatives]))

    def __repr__(self) -> str:
        return f"any_of({', '.join(map(repr, self.alternatives))})"


class Named(Pattern):
    """What `inner` matches, captured by `variable` as well."""

    __slots__ = ("inner", "variable")

    def __init__(self, inner: Pattern, variable: Variable) -> None:
        self.inner, self.variable = inner, variable

    @property
    def children(self) -> tuple[Pattern, ...]:
        return (self.inner,)

    def with_children(self, children: tuple[Pattern, ...]) -> Pattern:
        return Named(children[0], self.variable)

    def multi_use(self) -> Pattern:
        return Named(self.inner.multi_use(), self.variable)

    def __repr__(self) -> str:
        return f"{self.inner!r}.named({self.variable.name!r})"


class Optional(Pattern):
    """An operand that may be missing; the variables of `inner` are None then."""

    __slots__ = ("inner",)

    def __init__(self, inner: Pattern) -> None:
        self.inner = inner

    @property
    def children(self) -> tuple[Pattern, ...]:
        return (self.inner,)

    def with_children(self, children: tuple[Pattern, ...]) -> Pattern:
        return Optional(children[0])

    def __repr__(self) -> str:
        return f"optional({self.inner!r})"


# Building


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


# Looking at patterns


def walk(roots: Iterable[Pattern]) -> list[Pattern]:
    """Every node below `roots` and these themselves, each once, parents first."""
    found: dict[Pattern, None] = {}
    stack = [*roots][::-1]
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = None
            stack.extend(reversed(node.children))
    return list(found)


def variables(roots: Iterable[Pattern]) -> list[Variable]:
    """Every occurrence of a variable in a pattern, in order; one entry for each place where it stands."""
    roots = list(roots)
    found = [root for root in roots if isinstance(root, Variable)]
    for node in walk(roots):
        found.extend([child for child in node.children if isinstance(child, Variable)])
        match node:
            case Rest() | Named():
                found.append(node.variable)
            case Number(variable=Variable() as variable) | Maybe(flag=Variable() as variable):
                found.append(variable)
            case OpPattern():
                found.extend([a.wanted for a in node.attributes if isinstance(a.wanted, Variable)])
    return found


def variable_counts(roots: Iterable[Pattern]) -> Counter[str]:
    """In how many places each name stands. An anonymous variable is another one wherever it stands."""
    counts = Counter([v.name for v in variables(roots)])
    counts[""] = 1
    return counts
