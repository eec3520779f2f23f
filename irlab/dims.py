"""Symbolic sizes: integer polynomials over named symbols and opaque atoms, in one canonical form.

A size is an `int` where it is known and a `Dim` where it is not. Arithmetic keeps the canonical form, so two
sizes are equal exactly when their polynomials are:

    >>> seq = symbol("seq")
    >>> (seq + 1) * (seq - 1) == seq * seq - 1
    True
    >>> seq - seq + 3
    3

Floor division, remainder, minimum and maximum that do not simplify become *opaque atoms* of the polynomial.
Sizes are never negative; nothing else is assumed of a symbol.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Final, TypeAlias

from .errors import IRError

Size: TypeAlias = "int | Dim"
"""What a shape is made of."""

Atom: TypeAlias = "str | tuple[str, tuple[Size, ...]]"
"""A symbol's name, or an opaque function of sizes such as ("floordiv", (seq, 2))."""

Monomial: TypeAlias = "tuple[Atom, ...]"
"""Atoms with multiplicity, sorted by their text; () is the constant term."""

MAX_PRODUCT_TERMS: Final = 4096

_OPAQUE: Final[dict[str, Callable[..., int]]] = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "min": min,
    "max": max,
}
_INFIX: Final = {"floordiv": "//", "mod": "%"}


class Dim:
    """A non-constant size. Interned: equal polynomials are the same object, so `==` is identity."""

    __slots__ = ("__weakref__", "_text", "terms")
    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Size) -> Size:
        return _sum(self, other, 1)

    def __sub__(self, other: Size) -> Size:
        return _sum(self, other, -1)

    def __mul__(self, other: Size) -> Size:
        return _product(self, other)

    def __floordiv__(self, other: Size) -> Size:
        return floordiv(self, other)

    def __mod__(self, other: Size) -> Size:
        return mod(self, other)

    def __rsub__(self, other: int) -> Size:
        return _sum(other, self, -1)

    def __rfloordiv__(self, other: int) -> Size:
        return floordiv(other, self)

    def __rmod__(self, other: int) -> Size:
        return mod(other, self)

    def __neg__(self) -> Size:
        return _product(self, -1)

    __radd__ = __add__
    __rmul__ = __mul__

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Dim({self._text})"

    def __reduce__(self) -> tuple[Callable[[str], Size], tuple[str]]:
        return parse, (self._text,)

    _text: str


_interned: dict[tuple[tuple[Monomial, int], ...], Dim] = {}


def _atom_text(atom: Atom) -> str:
    if isinstance(atom, str):
        return atom
    name, args = atom
    if name in _INFIX:
        left, right = (f"({a})" if isinstance(a, Dim) and not _is_atomic(a) else str(a) for a in args)
        return f"({left} {_INFIX[name]} {right})"
    return f"{name}({', '.join(map(str, args))})"


def _is_atomic(dim: Dim) -> bool:
    return len(dim.terms) == 1 and dim.terms[0][1] == 1 and len(dim.terms[0][0]) == 1


def _term_text(monomial: Monomial, coefficient: int) -> str:
    factors = [_atom_text(a) for a in monomial]
    if abs(coefficient) != 1 or not factors:
        factors.append(str(abs(coefficient)))
    return "*".join(factors)


def _make(terms: Mapping[Monomial, int]) -> Size:
    kept = {m: c for m, c in terms.items() if c}
    if not kept:
        return 0
    if len(kept) == 1 and () in kept:
        return kept[()]
    # Higher degree first, then alphabetical: a*b + a + 1.
    key = tuple(sorted(kept.items(), key=lambda t: (-len(t[0]), [_atom_text(a) for a in t[0]])))
    dim = _interned.get(key)
    if dim is None:
        dim = Dim.__new__(Dim)
        dim.terms = key
        text = ""
        for monomial, coefficient in key:
            sign = "-" if coefficient < 0 else "+"
            term = _term_text(monomial, coefficient)
            text = f"{text} {sign} {term}" if text else (f"-{term}" if coefficient < 0 else term)
        dim._text = text
        _interned[key] = dim
    return dim


def _terms(size: Size) -> dict[Monomial, int]:
    return dict(size.terms) if isinstance(size, Dim) else {(): size}


def _sum(a: Size, b: Size, sign: int) -> Size:
    out = _terms(a)
    for monomial, coefficient in _terms(b).items():
        out[monomial] = out.get(monomial, 0) + sign * coefficient
    return _make(out)


def _product(a: Size, b: Size) -> Size:
    left, right = _terms(a), _terms(b)
    # Hostile shapes multiply sums of symbols until memory runs out.
    if len(left) * len(right) > MAX_PRODUCT_TERMS:
        raise IRError(f"a size of more than {MAX_PRODUCT_TERMS} terms is too complicated")
    out: dict[Monomial, int] = {}
    for m1, c1 in left.items():
        for m2, c2 in right.items():
            m = tuple(sorted(m1 + m2, key=_atom_text))
            out[m] = out.get(m, 0) + c1 * c2
    return _make(out)


@cache
def symbol(name: str) -> Dim:
    """The size called `name` (an identifier)."""
    if not name.isidentifier():
        raise ValueError(f"a symbolic size needs an identifier as its name, not {name!r}")
    dim = _make({(name,): 1})
    assert isinstance(dim, Dim)
    return dim


def _opaque(name: str, *args: Size) -> Size:
    return _make({((name, args),): 1})


def floordiv(a: Size, b: Size) -> Size:
    """a // b, simplified where b divides exactly; raises ZeroDivisionError for b = 0."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 0:
        raise ZeroDivisionError("a size is divided by zero")
    if a == b:
        return 1
    exact = _exact_quotient(a, b)
    return exact if exact is not None else _opaque("floordiv", a, b)


def mod(a: Size, b: Size) -> Size:
    """a % b, simplified where b divides exactly; raises ZeroDivisionError for b = 0."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if b == 0:
        raise ZeroDivisionError("a size is taken modulo zero")
    return 0 if _exact_quotient(a, b) is not None else _opaque("mod", a, b)


def _exact_quotient(a: Size, b: Size) -> Size | None:
    """a / b where b is one term that divides every term of a, or None."""
    divisor = _terms(b)
    if len(divisor) != 1:
        return None
    ((atoms, factor),) = divisor.items()
    out: dict[Monomial, int] = {}
    for monomial, coefficient in _terms(a).items():
        if coefficient % factor:
            return None
        rest = list(monomial)
        for atom in atoms:
            if atom not in rest:
                return None
            rest.remove(atom)
        out[tuple(rest)] = coefficient // factor
    return _make(out)


def minimum(a: Size, b: Size) -> Size:
    """The smaller size; symbolic unless the two differ by a constant."""
    return _extreme("min", a, b)


def maximum(a: Size, b: Size) -> Size:
    """The larger size; symbolic unless the two differ by a constant."""
    return _extreme("max", a, b)


def _extreme(name: str, a: Size, b: Size) -> Size:
    difference = a - b
    if isinstance(difference, int):
        return a if (difference <= 0) == (name == "min") else b
    # Both orders are one atom.
    first, second = sorted((a, b), key=str)
    return _opaque(name, first, second)


def product(sizes: tuple[Size, ...]) -> Size:
    """The number of elements of a shape."""
    return math.prod(sizes)


def symbols(size: Size) -> set[str]:
    """The names that `size` depends on."""
    if not isinstance(size, Dim):
        return set()
    names: set[str] = set()
    for monomial, _ in size.terms:
        for atom in monomial:
            if isinstance(atom, str):
                names.add(atom)
            else:
                names.update(*(symbols(arg) for arg in atom[1]))
    return names


def substitute(size: Size, bindings: Mapping[str, Size]) -> Size:
    """`size` with symbols replaced; names without a binding stay symbolic."""
    if not isinstance(size, Dim):
        return size
    total: Size = 0
    for monomial, coefficient in size.terms:
        term: Size = coefficient
        for atom in monomial:
            term = term * _substitute_atom(atom, bindings)
        total = total + term
    return total


def _substitute_atom(atom: Atom, bindings: Mapping[str, Size]) -> Size:
    if isinstance(atom, str):
        return bindings.get(atom, symbol(atom))
    name, args = atom
    return _FUNCTIONS[name](*(substitute(arg, bindings) for arg in args))


_FUNCTIONS: Final[dict[str, Callable[[Size, Size], Size]]] = {
    "floordiv": floordiv,
    "mod": mod,
    "min": minimum,
    "max": maximum,
}


def parse(text: str) -> Size:
    """The size that `text` denotes: the inverse of `str`. Raises ValueError, with a short reason."""
    import ast

    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{text!r} is not a size") from None
    return _from_ast(tree, text)


def _from_ast(node: object, text: str) -> Size:
    import ast

    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_from_ast(operand, text)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _from_ast(left, text), _from_ast(right, text)
            try:
                match op:
                    case ast.Add():
                        return a + b
                    case ast.Sub():
                        return a - b
                    case ast.Mult():
                        return a * b
                    case ast.FloorDiv():
                        return floordiv(a, b)
                    case ast.Mod():
                        return mod(a, b)
            except ZeroDivisionError as error:
                raise ValueError(str(error)) from None
        case ast.Call(func=ast.Name(id=("min" | "max") as name), args=[left, right], keywords=[]):
            return _FUNCTIONS[name](_from_ast(left, text), _from_ast(right, text))
    raise ValueError(f"{text!r} is not a size: use integers, names, + - * // %, min(a, b) and max(a, b)")
