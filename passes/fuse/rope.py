"""Rotary position embedding, as Hugging Face models spell it: x * cos + rotate_half(x) * sin."""

from __future__ import annotations

from irlab.ir import Value
from irlab.ops import nn, prim
from irlab.pattern import Pattern, Variable, p
from irlab.rewrite import Match, Rule
from irlab.types import f32, i64


class FuseRope(Rule):
    """x * cos(a) + concat(-x2, x1) * sin(a)  ->  nn.rope, where a = concat(f, f), f = positions * inv_freq.

    The tables cos(a) and sin(a) are shared by all layers; they die with their last use.
    """

    def pattern(
        self, x: Variable, half: Variable, inv: Variable, pos: Variable, cos_scale: Variable, sin_scale: Variable
    ) -> Pattern:
        product = p.shared(p.any_of(p.matmul(inv, pos), inv * pos))
        freqs = p.maybe(p.transpose, product, perm=[0, 2, 1]).multi_use()
        angles = p.shared(p.concat(freqs, freqs, axis=-1))
        cos = self._table(p.shared(p.cos(angles)), cos_scale)
        sin = self._table(p.shared(p.sin(angles)), sin_scale)
        rotated = p.concat(-p.slice(x, axis=-1, start=half, step=1), p.slice(x, axis=-1, start=0, stop=half, step=1))
        return x * cos + rotated * sin

    @staticmethod
    def _table(table: Pattern, scale: Variable) -> Pattern:
        """A table [batch, seq, width], scaled (YaRN), cast to the model's dtype and given a heads axis."""
        scaled = p.maybe(p.mul, table, p.const(scale)).multi_use()
        return p.shared(p.reshape(p.maybe(p.cast, scaled).multi_use()))

    def where(self, m: Match) -> bool | str:
        if m.x.type.rank != 4:
            return f"x is {m.x.type}, not [batch, heads, seq, head_dim]"
        if m.half * 2 != m.x.type.shape[-1]:
            return f"the halves meet at {m.half}, not in the middle"
        if m.cos_scale != m.sin_scale:
            return "cos and sin are scaled differently"
        reason = next((found for found in _sources(m) if isinstance(found, str)), None)
        return reason or True

    def rewrite(self, m: Match) -> Value:
        inv_freq, positions = _sources(m)
        assert isinstance(inv_freq, Value) and isinstance(positions, Value)
        return nn.rope(m.x, positions, inv_freq, scale=1.0 if m.cos_scale is None else m.cos_scale)


def _through_layout(value: Value) -> Value:
    """`value` before casts and layouts that only add or repeat dimensions."""
    while isinstance(value.op, prim.Reshape | prim.Expand | prim.Cast):
        value = value.op.x
    return value


def _sources(m: Match) -> tuple[Value | str, Value | str]:
    """What the angles are made of, the factors in either order: the f32 vector of frequencies, half the head size
    long, and the positions, i64[seq] or i64[batch, seq]. A string says that there is none."""
    inv_freq: Value | str = "no factor of the angles is a vector of head_dim / 2 frequencies"
    positions: Value | str = "no factor of the angles comes from i64 positions"
    for factor in (m.inv, m.pos):
        source = _through_layout(factor)
        if source.type.rank == 1 and source.type.dtype is f32 and source.type.shape[0] == m.half:
            inv_freq = source
        elif source.type.dtype is i64 and source.type.rank in (1, 2):
            positions = source
    return inv_freq, positions


class FusePartialRope(Rule):
    """concat(nn.rope(first part of x), rest of x)  ->  nn.rope(x): only the first features turn."""

    def pattern(
        self, x: Variable, positions: Variable, inv_freq: Variable, scale: Variable, width: Variable
    ) -> Pattern:
        turned = p.rope(
            p.slice(x, axis=-1, start=0, stop=width, step=1), positions, inv_freq, interleaved=False, scale=scale
        )
        return p.concat(turned, p.slice(x, axis=-1, start=width, step=1), axis=-1)

    def where(self, m: Match) -> bool | str:
        return m.root.result.type is m.x.type or "the parts do not add up to x"

    def rewrite(self, m: Match) -> Value:
        return nn.rope(m.x, m.positions, m.inv_freq, scale=m.scale)
