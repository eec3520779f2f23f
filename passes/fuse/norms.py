"""Normalisation: rms_norm and layer_norm from the primitives that models spell them with."""

from __future__ import annotations

from irlab.ir import Value
from irlab.ops import nn
from irlab.pattern import Pattern, Variable, p
from irlab.rewrite import Match, Rule
from irlab.types import tensor


def _is_vector_over_last_axis(x: Value, parameter: Value) -> bool | str:
    expected = tensor(x.type.dtype, x.type.shape[-1:])
    return parameter.type is expected or f"the weight is {parameter.type}, not {expected}"


class FuseRMSNorm(Rule):
    """x * rsqrt(mean(x^2) + eps) * w  ->  nn.rms_norm, with the mean in f32 whatever the dtype of x."""

    def pattern(self, x: Variable, w: Variable, eps: Variable) -> Pattern:
        xf = p.maybe(p.cast, x).multi_use()
        square = p.any_of(xf**2, xf * xf)
        n = xf * p.rsqrt(p.mean(square, axes=[-1], keepdims=True) + p.const(eps))
        return p.maybe(p.cast, n) * w

    def where(self, m: Match) -> bool | str:
        if m.root.result.type is not m.x.type:
            return f"the result is {m.root.result.type}, not the type of x: the cast back is elsewhere"
        return _is_vector_over_last_axis(m.x, m.w)

    def rewrite(self, m: Match) -> Value:
        return nn.rms_norm(m.x, m.w, eps=m.eps)


class FuseLayerNorm(Rule):
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * w + b  ->  nn.layer_norm."""

    def pattern(self, x: Variable, w: Variable, b: Variable, eps: Variable) -> Pattern:
        xf = p.maybe(p.cast, x).multi_use()
        centred = p.shared(xf - p.mean(xf, axes=[-1], keepdims=True))
        variance = p.mean(p.any_of(centred**2, centred * centred), axes=[-1], keepdims=True)
        n = p.any_of(
            centred * p.rsqrt(variance + p.const(eps)),
            centred / p.sqrt(variance + p.const(eps)),
        )
        return p.maybe(p.cast, n) * w + b

    def where(self, m: Match) -> bool | str:
        if m.root.result.type is not m.x.type:
            return f"the result is {m.root.result.type}, not the type of x"
        weight = _is_vector_over_last_axis(m.x, m.w)
        return weight if weight is not True else _is_vector_over_last_axis(m.x, m.b)

    def rewrite(self, m: Match) -> Value:
        return nn.layer_norm(m.x, m.w, m.b, eps=m.eps)


class FuseCentredNorm(Rule):
    """nn.rms_norm of x - mean(x)  ->  nn.layer_norm(x), where the root mean square was found first."""

    def pattern(self, x: Variable, w: Variable, eps: Variable) -> Pattern:
        return p.rms_norm(p.shared(x - p.mean(x, axes=[-1], keepdims=True)), w, eps=eps)

    def rewrite(self, m: Match) -> Value:
        return nn.layer_norm(m.x, m.w, eps=m.eps)


class FuseNormBias(Rule):
    """nn.layer_norm(x, w) + b  ->  nn.layer_norm(x, w, b)."""

    def pattern(self, x: Variable, w: Variable, b: Variable, eps: Variable) -> Pattern:
        return p.layer_norm(x, w, None, eps=eps) + b

    def where(self, m: Match) -> bool | str:
        return _is_vector_over_last_axis(m.x, m.b)

    def rewrite(self, m: Match) -> Value:
        return nn.layer_norm(m.x, m.w, m.b, eps=m.eps)
