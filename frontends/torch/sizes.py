"""How torch's symbolic sizes (SymInt, over sympy) become irlab's (`Dim`)."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

from irlab import dims
from irlab.dims import Size
from irlab.errors import InputError

if TYPE_CHECKING:
    import torch

_FUNCTIONS = {
    "FloorDiv": dims.floordiv,
    "CleanDiv": dims.floordiv,
    "Mod": dims.mod,
    "PythonMod": dims.mod,
    "Min": dims.minimum,
    "Max": dims.maximum,
}
"""sympy functions (torch.utils._sympy.functions) of two or more sizes that are sizes."""


class Sizes:
    """Converts the sizes of one exported program. `names` gives irlab's name of a sympy symbol ("s70" -> "seq")."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = dict(names)
        self._known: dict[Any, Size] = {}

    def size(self, value: int | torch.SymInt) -> Size:
        """The size that `value` stands for; raises InputError for an expression that is no integer polynomial."""
        return value if type(value) is int else self._expression(value.node.expr)  # type: ignore[union-attr]

    def shape(self, values: tuple[int | torch.SymInt, ...] | torch.Size) -> tuple[Size, ...]:
        """All sizes of a shape."""
        return tuple([self.size(v) for v in values])

    def _expression(self, expr: Any) -> Size:
        found = self._known.get(expr)
        if found is None:
            found = self._known[expr] = self._convert(expr)
        return found

    def _convert(self, expr: Any) -> Size:
        if expr.is_Integer:
            return int(expr)
        if expr.is_Symbol:
            return dims.symbol(self._names.get(expr.name, expr.name))
        kind = type(expr).__name__
        if expr.is_Add:
            return reduce(operator.add, [self._expression(a) for a in expr.args])
        if expr.is_Mul:
            return self._quotient(expr)
        if expr.is_Pow and expr.exp.is_Integer and int(expr.exp) > 0:
            return reduce(operator.mul, [self._expression(expr.base)] * int(expr.exp))
        if kind in _FUNCTIONS:
            return reduce(_FUNCTIONS[kind], [self._expression(a) for a in expr.args])
        if kind == "ModularIndexing":
            base, divisor, modulus = (self._expression(a) for a in expr.args)
            return dims.mod(dims.floordiv(base, divisor), modulus)
        if kind == "Identity":
            return self._expression(expr.args[0])
        raise InputError(f"the size {expr} cannot be written as an integer polynomial")

    def _quotient(self, expr: Any) -> Size:
        """A product, some factors of which may be 1 / n: torch writes exact divisions so."""
        above: Size = 1
        below: Size = 1
        for factor in expr.args:
            if factor.is_Rational:
                above, below = above * int(factor.p), below * int(factor.q)
            elif factor.is_Pow and factor.exp.is_Integer and int(factor.exp) < 0:
                below = below * self._expression(factor.base**-factor.exp)
            else:
                above = above * self._expression(factor)
        return above if below == 1 else dims.floordiv(above, below)
