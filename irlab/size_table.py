"""Where does a symbolic size come from at run time? From the shape of a value that has it, computed once per scope.

Backends subclass `SizeTable` with the handful of integer ops of their format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from .dims import Atom, Dim, Size, floordiv, maximum, minimum, mod, symbol, symbols
from .errors import LegalityError
from .ir import Op, Value
from .ops.call import Call

T = TypeVar("T")


class SizeTable(ABC, Generic[T]):
    """Turns sizes into i64 vectors of length 1, and shapes into i64 vectors. T is what the format calls a value."""

    def __init__(self) -> None:
        self._sources: dict[Dim, tuple[Value, int]] = {}

    @abstractmethod
    def ints(self, *numbers: int) -> T:
        """A vector of known numbers."""

    @abstractmethod
    def measured(self, value: Value, axis: int) -> T:
        """The size of `value` along `axis` (counted from 0), as a vector of length 1."""

    @abstractmethod
    def binary(self, operation: str, a: T, b: T) -> T:
        """`operation` (add, sub, mul, min, max, mod, floordiv) of two vectors of length 1."""

    @abstractmethod
    def joined(self, parts: list[T]) -> T:
        """The vectors one after the other."""

    @abstractmethod
    def memo(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """What is known by `key` where the caller stands, made when first asked for."""

    def found_in(self, op: Op) -> None:
        """Note the sizes that only running `op` reveals."""
        if isinstance(op, Call):
            for value in op.results:
                self.offer(value)

    def offer(self, value: Value) -> None:
        """Note the sizes that the shape of `value` shows."""
        for axis, size in enumerate(value.type.shape):
            if isinstance(size, Dim):
                self._sources.setdefault(size, (value, axis))

    def size(self, size: Size) -> T:
        """A vector of length 1 that holds `size`."""
        return self.ints(size) if isinstance(size, int) else self.memo(("size", size), lambda: self._compute(size))

    def shape(self, shape: tuple[Size, ...]) -> T:
        """A vector that holds `shape`."""
        known = [d for d in shape if isinstance(d, int)]
        if len(known) == len(shape):
            return self.ints(*known)
        if len(shape) == 1:
            return self.size(shape[0])
        return self.memo(("shape", shape), lambda: self.joined(self._runs(shape)))

    def _runs(self, shape: tuple[Size, ...]) -> list[T]:
        """The parts of a shape vector: neighbouring known sizes are one constant."""
        parts: list[T] = []
        known: list[int] = []
        for size in (*shape, None):
            if isinstance(size, int):
                known.append(size)
                continue
            if known:
                parts.append(self.ints(*known))
                known = []
            if size is not None:
                parts.append(self.size(size))
        return parts

    def _compute(self, size: Dim) -> T:
        if size in self._sources:
            return self.measured(*self._sources[size])
        if len(size.terms) == 1 and size.terms[0][1] == 1 and len(size.terms[0][0]) == 1:
            atom = size.terms[0][0][0]
            if isinstance(atom, str):
                return self._solve(size)
            name, (left, right) = atom
            return self.binary(name, self.size(left), self.size(right))
        total: T | None = None
        for monomial, coefficient in size.terms:
            factors = [self.size(_as_size(atom)) for atom in monomial]
            if abs(coefficient) != 1 or not factors:
                factors.append(self.ints(abs(coefficient)))
            term = factors[0]
            for factor in factors[1:]:
                term = self.binary("mul", term, factor)
            if total is not None:
                total = self.binary("add" if coefficient > 0 else "sub", total, term)
            else:
                total = term if coefficient > 0 else self.binary("sub", self.ints(0), term)
        assert total is not None
        return total

    def _solve(self, wanted: Dim) -> T:
        """A symbol, from a source such as `past + seq` in which it stands once and the rest is known."""
        for known in self._sources:
            rest = known - wanted
            if isinstance(rest, int) or (symbols(rest) and str(wanted) not in symbols(rest) and self._is_known(rest)):
                return self.binary("sub", self.size(known), self.size(rest))
        raise LegalityError(f"the size {wanted} is not the size of any input")

    def _is_known(self, size: Dim) -> bool:
        return all(symbol(name) in self._sources for name in symbols(size))


def _as_size(atom: Atom) -> Size:
    if isinstance(atom, str):
        return symbol(atom)
    name, (left, right) = atom
    return {"floordiv": floordiv, "mod": mod, "min": minimum, "max": maximum}[name](left, right)
