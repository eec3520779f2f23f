"""What the types already say."""

from __future__ import annotations

from typing import Any, Final

from irlab import Match, Rule, Value, p, prim
from irlab.dims import Dim
from irlab.pattern import Pattern
from irlab.types import i64


class KnownDim(Rule):
    """dim(x) of a size that is known -> that number"""

    def pattern(self, x: Any, axis: Any) -> Pattern:
        return p.dim(x, axis=axis)

    def where(self, m: Match) -> bool | str:
        return not isinstance(m.x.type.shape[m.axis], Dim) or "the size is symbolic"

    def rewrite(self, m: Match) -> Value:
        return prim.constant(m.x.type.shape[m.axis], i64)


class ShortIota(Rule):
    """iota of one number -> that number"""

    def pattern(self, start: Any, dtype: Any) -> Pattern:
        return p.iota(size=1, start=start, dtype=dtype)

    def where(self, m: Match) -> bool | str:
        return not isinstance(m.start, Dim) or "it begins at a symbolic size"

    def rewrite(self, m: Match) -> Value:
        return prim.constant(m.start, m.dtype, (1,))


TYPES: Final = (KnownDim, ShortIota)
