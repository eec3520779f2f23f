"""Where does a symbolic size come from at run time? From the shape of a value that has it, computed once per scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from irlab.dims import Atom, Dim, Size
from irlab.errors import LegalityError
from irlab.ir import Op, Value
from irlab.ops.call import Call

if TYPE_CHECKING:
    from irlab.backends.onnx.emitter import Emitter

_FUNCTION: Final = {"min": "Min", "max": "Max"}


class SizeTable:
    """Turns sizes into i64 tensors of shape [1], and shapes into vectors."""

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter
        self._sources: dict[Dim, tuple[Value, int]] = {}

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

    def size(self, size: Size) -> str:
        """The name of an i64[1] that holds `size`."""
        if isinstance(size, int):
            return self._emitter.ints(size)
        return self._emitter.memo(("size", size), lambda: self._compute(size))

    def scalar(self, size: Size) -> str:
        """The name of an i64 of rank 0 that holds `size`."""
        import numpy as np

        e = self._emitter
        if isinstance(size, int):
            return e.array(np.array(size, np.int64))
        return e.memo(("scalar", size), lambda: e.node("Squeeze", self.size(size), e.ints(0)))

    def shape(self, shape: tuple[Size, ...]) -> str:
        """The name of an i64 vector that holds `shape`."""
        e = self._emitter
        if all(isinstance(d, int) for d in shape):
            return e.ints(*(d for d in shape if isinstance(d, int)))
        return e.memo(("shape", shape), lambda: e.node("Concat", *self._runs(shape), axis=0))

    def _runs(self, shape: tuple[Size, ...]) -> list[str]:
        """The parts of a shape vector: neighbouring known sizes are one constant."""
        parts: list[str] = []
        known: list[int] = []
        for size in (*shape, None):
            if isinstance(size, int):
                known.append(size)
                continue
            if known:
                parts.append(self._emitter.ints(*known))
                known = []
            if size is not None:
                parts.append(self.size(size))
        return parts

    def _compute(self, size: Dim) -> str:
        e = self._emitter
        if size in self._sources:
            value, axis = self._sources[size]
            return e.node("Shape", e[value], start=axis, end=axis + 1)
        if len(size.terms) == 1 and size.terms[0][1] == 1 and len(size.terms[0][0]) == 1:
            return self._atom(size, size.terms[0][0][0])
        total = ""
        for monomial, coefficient in size.terms:
            factors = [self.size(_as_size(atom)) for atom in monomial]
            if abs(coefficient) != 1 or not factors:
                factors.append(e.ints(abs(coefficient)))
            term = factors[0]
            for factor in factors[1:]:
                term = e.node("Mul", term, factor)
            if total:
                total = e.node("Add" if coefficient > 0 else "Sub", total, term)
            else:
                total = term if coefficient > 0 else e.node("Neg", term)
        return total

    def _atom(self, size: Dim, atom: Atom) -> str:
        if isinstance(atom, str):
            return self._solve(size)
        e = self._emitter
        name, (left, right) = atom
        a, b = self.size(left), self.size(right)
        if name in _FUNCTION:
            return e.node(_FUNCTION[name], a, b)
        if name == "mod":
            return e.node("Mod", a, b)
        # Div rounds toward zero; taking the remainder off first makes it floor division.
        return e.node("Div", e.node("Sub", a, e.node("Mod", a, b)), b)

    def _solve(self, symbol: Dim) -> str:
        """The symbol, from a source such as `past + seq` in which it stands once and the rest is known."""
        for known in self._sources:
            rest = known - symbol
            if isinstance(rest, int) or (_names(rest) and str(symbol) not in _names(rest) and self._is_known(rest)):
                return self._emitter.node("Sub", self.size(known), self.size(rest))
        raise LegalityError(f"the size {symbol} is not the size of any input")

    def _is_known(self, size: Dim) -> bool:
        from irlab.dims import symbol

        return all(symbol(name) in self._sources for name in _names(size))


def _names(size: Dim) -> set[str]:
    from irlab.dims import symbols

    return symbols(size)


def _as_size(atom: Atom) -> Size:
    from irlab.dims import floordiv, maximum, minimum, mod, symbol

    if isinstance(atom, str):
        return symbol(atom)
    name, (left, right) = atom
    return {"floordiv": floordiv, "mod": mod, "min": minimum, "max": maximum}[name](left, right)
