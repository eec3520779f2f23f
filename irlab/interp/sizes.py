"""Symbolic sizes at run time: symbols are bound by the shapes that arrive, then sizes in attributes are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from .. import dims
from ..dims import Dim, Size
from ..errors import InputError
from ..types import Shape

Arrival: TypeAlias = "tuple[str, Shape, tuple[int, ...]]"
"""What arrived (for messages), the shape it was declared with, and the shape it has."""


class Sizes:
    """The numbers that symbols stand for. `sizes(dim)` is the number that a size comes to.

    >>> sizes = Sizes({"batch": 2})
    >>> sizes.bind([("x", tensor("f32", ("batch", "past + seq")).shape, (2, 7)), ("y", ("seq",), (3,))])
    >>> sizes(symbol("past"))
    4
    """

    def __init__(self, known: Mapping[str, int] | None = None) -> None:
        self.known: dict[str, int] = dict(known or {})
        self._computed: dict[Dim, int] = {}

    def __call__(self, size: Size) -> int:
        if not isinstance(size, Dim):
            return size
        found = self._computed.get(size)
        if found is None:
            found = self._computed[size] = self._compute(size)
        return found

    def shape(self, shape: Shape) -> tuple[int, ...]:
        """All sizes of a shape as numbers."""
        return tuple([self(size) for size in shape])

    def knows(self, size: Size) -> bool:
        """Whether every symbol of `size` is bound."""
        return dims.symbols(size) <= self.known.keys()

    def _compute(self, size: Dim) -> int:
        try:
            value = dims.substitute(size, self.known)
        except ZeroDivisionError:
            raise InputError(f"the size {size} divides by zero with {self}") from None
        if isinstance(value, Dim):
            names = ", ".join(sorted(dims.symbols(value)))
            raise InputError(f"the size {size} is not known: no input tells {names}")
        return value

    def bind(self, arrivals: Iterable[Arrival]) -> None:
        """Learn symbols from what arrived, and check everything that arrived against what was declared.

        A symbol is learnt from a size in which it alone is unknown and stands plainly, such as `seq` or `past + seq`.
        """
        pending: list[tuple[str, int, Size, int]] = []
        for what, declared, actual in arrivals:
            if len(declared) != len(actual):
                raise InputError(f"{what} has shape {list(actual)}, expected [{', '.join(map(str, declared))}]")
            pending.extend((what, axis, size, n) for axis, (size, n) in enumerate(zip(declared, actual)))
        while True:
            rest = [item for item in pending if not self.knows(item[2])]
            if not any(self._learn(*item) for item in rest):
                break
        for what, axis, size, number in pending:
            if self.knows(size) and (expected := self(size)) != number:
                said = f"{size} = {expected}" if isinstance(size, Dim) else str(size)
                raise InputError(f"{what} has size {number} in dimension {axis}, expected {said}")

    def _learn(self, what: str, axis: int, size: Size, number: int) -> bool:
        """Bind the one unknown symbol of `size`, if it stands as coefficient * symbol; says whether it did."""
        unknown = dims.symbols(size) - self.known.keys()
        if len(unknown) != 1:
            return False
        (name,) = unknown
        try:
            constant = dims.substitute(size, {**self.known, name: 0})
            slope = dims.substitute(size, {**self.known, name: 1}) - constant
        except ZeroDivisionError:
            return False
        linear = dims.substitute(size, self.known) == slope * dims.symbol(name) + constant
        if not linear or not isinstance(constant, int) or not isinstance(slope, int) or slope == 0:
            return False
        value, remainder = divmod(number - constant, slope)
        if remainder or value < 0:
            raise InputError(f"{what} has size {number} in dimension {axis}, which {size} cannot be ({self})")
        self.known[name] = value
        self._computed.clear()
        return True

    def __str__(self) -> str:
        return ", ".join(f"{name} = {value}" for name, value in self.known.items()) or "no size known"
