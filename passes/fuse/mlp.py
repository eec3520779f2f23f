"""Activations and the gated feed-forward block."""

from __future__ import annotations

from irlab.ir import Value
from irlab.ops import nn, prim
from irlab.pattern import Pattern, Variable, p
from irlab.rewrite import Match, Rule


class FuseSilu(Rule):
    """x * sigmoid(x)  ->  nn.silu(x)."""

    def pattern(self, x: Variable) -> Pattern:
        return x * p.sigmoid(x)

    def rewrite(self, m: Match) -> Value:
        return nn.silu(m.x)


class FuseGelu(Rule):
    """x * 0.5 * (1 + erf(x / sqrt 2))  ->  nn.gelu(x)."""

    def pattern(self, x: Variable) -> Pattern:
        scaled = p.any_of(x * 0.7071067811865476, x / 1.4142135623730951)
        cdf = p.erf(scaled) + 1.0
        return p.chain(p.mul, x, 0.5, cdf)

    def rewrite(self, m: Match) -> Value:
        return nn.gelu(m.x)


class FuseGeluTanh(Rule):
    """x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))  ->  nn.gelu(x) {approximate="tanh"}."""

    def pattern(self, x: Variable) -> Pattern:
        cube = p.any_of(x**3, x * (x * x))
        cdf = p.tanh((x + cube * 0.044715) * 0.7978845608028654) + 1.0
        return p.chain(p.mul, x, 0.5, cdf)

    def rewrite(self, m: Match) -> Value:
        return nn.gelu(m.x, "tanh")


class FuseGatedMLP(Rule):
    """linear(act(linear(x, gate)) * linear(x, up), down)  ->  nn.gated_mlp(x, gate, up, down)."""

    def pattern(
        self,
        x: Variable,
        gate: Variable,
        up: Variable,
        down: Variable,
        gate_bias: Variable,
        up_bias: Variable,
        down_bias: Variable,
    ) -> Pattern:
        inner = p.linear(x, gate, p.optional(gate_bias))
        activated = p.any_of(p.silu(inner), p.gelu(inner), p.relu(inner)).named("activated")
        return p.linear(activated * p.linear(x, up, p.optional(up_bias)), down, p.optional(down_bias))

    def rewrite(self, m: Match) -> Value:
        activation = "silu"
        if isinstance(m.activated.op, nn.Gelu):
            activation = "gelu_tanh" if m.activated.op.approximate == "tanh" else "gelu"
        elif isinstance(m.activated.op, prim.Relu):
            activation = "relu"
        return nn.gated_mlp(m.x, m.gate, m.up, m.down, m.gate_bias, m.up_bias, m.down_bias, activation=activation)
