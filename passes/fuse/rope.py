"""Rotary position embedding, as models spell it: rotate_half, the two halves apart, or pairs side by side."""

from __future__ import annotations

from irlab.dims import Size
from irlab.ir import Value
from irlab.ops import nn, prim
from irlab.pattern import Pattern, Variable, p
from irlab.rewrite import Match, Rule
from irlab.types import f32, i64


def _frequencies(inv: Variable, pos: Variable) -> Pattern:
    """The angles of half a head: positions * inv_freq, as an outer product or a broadcast one."""
    product = p.shared(p.any_of(p.matmul(inv, pos), inv * pos))
    return p.maybe(p.transpose, product, perm=[0, 2, 1]).multi_use()


def _table(table: Pattern, scale: Variable) -> Pattern:
    """A table of cosines or sines, scaled (YaRN), cast to the model's dtype and given a heads axis; shared by all
    layers, it dies with its last use."""
    scaled = p.maybe(p.mul, p.shared(table), p.const(scale)).multi_use()
    return p.maybe(p.reshape, p.maybe(p.cast, scaled).multi_use()).multi_use()


class RopeRule(Rule):
    """What the spellings share: `x`, the factors `inv` and `pos` of the angles, and the scales of both tables."""

    interleaved = False

    def where(self, m: Match) -> bool | str:
        if m.x.type.rank != 4:
            return f"x is {m.x.type}, not [batch, heads, seq, head_dim]"
        if m.cos_scale != m.sin_scale:
            return "cos and sin are scaled differently"
        inv_freq, positions = _sources(m.inv, m.pos, self.turned(m).type.shape[-1])
        for found in (inv_freq, positions):
            if isinstance(found, str):
                return found
        assert isinstance(positions, Value)
        if positions.type.shape[-1] != m.x.type.shape[2]:
            return f"positions {positions.type} do not run along the third axis of x"
        return True

    def rewrite(self, m: Match) -> Value:
        inv_freq, positions = _sources(m.inv, m.pos, self.turned(m).type.shape[-1])
        assert isinstance(inv_freq, Value) and isinstance(positions, Value)
        scale = 1.0 if m.cos_scale is None else m.cos_scale
        return nn.rope(self.turned(m), positions, inv_freq, interleaved=self.interleaved, scale=scale)

    def turned(self, m: Match) -> Value:
        """The features that turn: all of x, unless a spelling leaves some out."""
        assert isinstance(m.x, Value)
        return m.x


class FuseRope(RopeRule):
    """x * cos(a) + concat(-x2, x1) * sin(a)  ->  nn.rope, where a = concat(f, f), f = positions * inv_freq."""

    def pattern(
        self, x: Variable, half: Variable, inv: Variable, pos: Variable, cos_scale: Variable, sin_scale: Variable
    ) -> Pattern:
        freqs = _frequencies(inv, pos)
        angles = p.shared(p.concat(freqs, freqs, axis=-1))
        cos, sin = _table(p.cos(angles), cos_scale), _table(p.sin(angles), sin_scale)
        rotated = p.concat(-p.slice(x, axis=-1, start=half, step=1), p.slice(x, axis=-1, start=0, stop=half, step=1))
        return x * cos + rotated * sin

    def where(self, m: Match) -> bool | str:
        if m.half * 2 != m.x.type.shape[-1]:
            return f"the halves meet at {m.half}, not in the middle"
        return super().where(m)


class FuseSplitRope(RopeRule):
    """concat(x1 * cos(f) - x2 * sin(f), x2 * cos(f) + x1 * sin(f))  ->  nn.rope(x), the halves turned apart."""

    def pattern(
        self,
        x: Variable,
        half: Variable,
        width: Variable,
        inv: Variable,
        pos: Variable,
        cos_scale: Variable,
        sin_scale: Variable,
    ) -> Pattern:
        freqs = _frequencies(inv, pos)
        cos, sin = _table(p.cos(freqs), cos_scale), _table(p.sin(freqs), sin_scale)
        first = p.shared(p.slice(x, axis=-1, start=0, stop=half, step=1))
        second = p.shared(p.slice(x, axis=-1, start=half, stop=width, step=1))
        return p.concat(first * cos - second * sin, second * cos + first * sin, axis=-1)

    def where(self, m: Match) -> bool | str:
        if m.half * 2 != m.width:
            return f"the halves meet at {m.half}, not in the middle of {m.width}"
        return super().where(m)

    def turned(self, m: Match) -> Value:
        return m.x if m.width == m.x.type.shape[-1] else prim.slice(m.x, -1, 0, m.width)


class FuseInterleavedRope(RopeRule):
    """The same with even features as first half and odd ones as second, put back side by side."""

    interleaved = True

    def pattern(self, x: Variable, inv: Variable, pos: Variable, cos_scale: Variable, sin_scale: Variable) -> Pattern:
        freqs = _frequencies(inv, pos)
        cos, sin = _table(p.cos(freqs), cos_scale), _table(p.sin(freqs), sin_scale)
        even = p.shared(p.slice(x, axis=-1, start=0, step=2))
        odd = p.shared(p.slice(x, axis=-1, start=1, step=2))
        first, second = even * cos - odd * sin, odd * cos + even * sin
        return p.reshape(p.concat(p.reshape(first), p.reshape(second), axis=-1))

    def where(self, m: Match) -> bool | str:
        (pairs,) = (value for value in m.root.operands if value is not None)
        if m.root.result.type is not m.x.type or pairs.type.shape != (*m.x.type.shape[:-1], m.x.type.shape[-1] // 2, 2):
            return "the pairs are not put back side by side"
        return super().where(m)


def _through_layout(value: Value) -> Value:
    """`value` before casts and layouts that only add or repeat dimensions."""
    while isinstance(value.op, prim.Reshape | prim.Expand | prim.Cast):
        value = value.op.x
    return value


def _sources(inv: Value, pos: Value, width: Size) -> tuple[Value | str, Value | str]:
    """What the angles are made of, the factors in either order: the f32 vector of frequencies, half of `width` long,
    and the positions, i64[seq] or i64[batch, seq]. A string says that there is none."""
    inv_freq: Value | str = "no factor of the angles is a vector of head_dim / 2 frequencies"
    positions: Value | str = "no factor of the angles comes from i64 positions"
    for factor in (inv, pos):
        source = _through_layout(factor)
        if source.type.rank == 1 and source.type.dtype is f32 and source.type.shape[0] * 2 == width:
            inv_freq = source
        elif source.type.dtype is i64 and source.type.rank in (1, 2):
            positions = source
    return inv_freq, positions


class FusePartialRope(Rule):
    """concat(nn.rope(first part of x), rest of x)  ->  nn.rope(x): only the first features turn."""

    def pattern(
        self,
        x: Variable,
        positions: Variable,
        inv_freq: Variable,
        interleaved: Variable,
        scale: Variable,
        width: Variable,
    ) -> Pattern:
        turned = p.rope(
            p.shared(p.slice(x, axis=-1, start=0, stop=width, step=1)),
            positions,
            inv_freq,
            interleaved=interleaved,
            scale=scale,
        )
        return p.concat(turned, p.shared(p.slice(x, axis=-1, start=width, step=1)), axis=-1)

    def where(self, m: Match) -> bool | str:
        return m.root.result.type is m.x.type or "the parts do not add up to x"

    def rewrite(self, m: Match) -> Value:
        return nn.rope(m.x, m.positions, m.inv_freq, interleaved=m.interleaved, scale=m.scale)
