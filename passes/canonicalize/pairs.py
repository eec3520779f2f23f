"""Two of a kind in a row are one. What lies between may have other uses: it then stays for them."""

from __future__ import annotations

from typing import Any, Final, cast

from irlab import Match, Rule, Value, p, prim
from irlab.pattern import Pattern
from irlab.types import DType, bf16, f16, f32, f64


class ReshapeReshape(Rule):
    """reshape(reshape(x)) -> reshape(x)"""

    def pattern(self, x: Any, shape: Any) -> Pattern:
        return p.reshape(p.shared(p.reshape(x)), shape=shape)

    def rewrite(self, m: Match) -> Value:
        return prim.reshape(m.x, m.shape)


class ExpandExpand(Rule):
    """expand(expand(x)) -> expand(x)"""

    def pattern(self, x: Any, shape: Any) -> Pattern:
        return p.expand(p.shared(p.expand(x)), shape=shape)

    def rewrite(self, m: Match) -> Value:
        return prim.expand(m.x, m.shape)


class TransposeTranspose(Rule):
    """transpose(transpose(x)) -> transpose(x) by both at once"""

    def pattern(self, x: Any, first: Any, second: Any) -> Pattern:
        return p.transpose(p.shared(p.transpose(x, perm=first)), perm=second)

    def rewrite(self, m: Match) -> Value:
        return prim.transpose(m.x, tuple([m.first[i] for i in m.second]))


class SliceSlice(Rule):
    """slice(slice(x)) along one axis by step 1 -> slice(x)"""

    def pattern(self, x: Any, axis: Any, offset: Any, start: Any, stop: Any) -> Pattern:
        inner = p.shared(p.slice(x, axis=axis, start=offset, step=1))
        return p.slice(inner, axis=axis, start=start, stop=stop, step=1)

    def rewrite(self, m: Match) -> Value:
        return prim.slice(m.x, m.axis, m.offset + m.start, m.offset + m.stop)


class CastCast(Rule):
    """cast(cast(x)) -> cast(x), where the inner cast loses nothing"""

    def pattern(self, x: Any, between: Any, dtype: Any) -> Pattern:
        return p.cast(p.shared(p.cast(x, dtype=between)), dtype=dtype)

    def where(self, m: Match) -> bool | str:
        if m.x.type.encoding is not None:
            return "x is encoded: the inner cast decodes it"
        return holds(m.between, m.x.type.dtype) or "the inner cast may lose something"

    def rewrite(self, m: Match) -> Value:
        return prim.cast(m.x, m.dtype)


_EXPONENT_AND_FRACTION: Final = {f16: (5, 10), bf16: (8, 7), f32: (8, 23), f64: (11, 52)}
"""Bits of exponent and fraction: a float holds another exactly if it has as many of both."""


def holds(wide: DType, narrow: DType) -> bool:
    """Whether every number of dtype `narrow` is one of dtype `wide`."""
    if wide is narrow:
        return True
    if wide in _EXPONENT_AND_FRACTION and narrow in _EXPONENT_AND_FRACTION:
        return all(w >= n for w, n in zip(_EXPONENT_AND_FRACTION[wide], _EXPONENT_AND_FRACTION[narrow]))
    # i8 fits i16, u8 fits i16 and u16; i8 does not fit u16.
    if wide.is_int and narrow.is_int:
        signs = (_is_signed(wide), _is_signed(narrow))
        return wide.bits > narrow.bits and signs != (False, True)
    return False


def _is_signed(dtype: DType) -> bool:
    return dtype.name.startswith("i")


class NegNeg(Rule):
    """-(-x) -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.neg(p.shared(p.neg(x)))

    def rewrite(self, m: Match) -> Value:
        return cast(Value, m.x)


class NotNot(Rule):
    """not(not(x)) -> x"""

    def pattern(self, x: Any) -> Pattern:
        return p.not_(p.shared(p.not_(x)))

    def rewrite(self, m: Match) -> Value:
        return cast(Value, m.x)


class AbsAbs(Rule):
    """abs(abs(x)), abs(-x) -> abs(x)"""

    def pattern(self, x: Any) -> Pattern:
        return p.abs(p.any_of(p.shared(p.abs(x)), p.shared(p.neg(x))))

    def rewrite(self, m: Match) -> Value:
        return prim.abs(m.x)


class ReluRelu(Rule):
    """relu(relu(x)) -> relu(x)"""

    def pattern(self, x: Any) -> Pattern:
        return p.relu(p.shared(p.relu(x)))

    def rewrite(self, m: Match) -> Value:
        return prim.relu(m.x)


PAIRS: Final = (
    ReshapeReshape,
    ExpandExpand,
    TransposeTranspose,
    SliceSlice,
    CastCast,
    NegNeg,
    NotNot,
    AbsAbs,
    ReluRelu,
)
