"""Mixtures of experts: the router in front of the experts that it chooses."""

from __future__ import annotations

from irlab.ir import Value
from irlab.ops import nn
from irlab.pattern import Pattern, Variable, p
from irlab.rewrite import Match, Rule


class _Mixture(Rule):
    """Base of the rules of routers, which choose the `k` best."""

    def where(self, m: Match) -> bool | str:
        return isinstance(m.k, int) or "how many experts are chosen is not known"


class FuseMixture(_Mixture):
    """experts chosen by topk(softmax(logits))  ->  nn.moe, normalised if the scores are divided by their sum."""

    def pattern(
        self,
        x: Variable,
        logits: Variable,
        gate: Variable,
        up: Variable,
        down: Variable,
        k: Variable,
        activation: Variable,
    ) -> Pattern:
        likeliest = p.topk(p.softmax(p.maybe(p.cast, logits)), k=k, axis=-1)
        shares = (likeliest[0] / p.sum(likeliest[0], axes=[-1], keepdims=True)).named("shares")
        scores = p.maybe(p.cast, p.any_of(shares, likeliest[0]))
        return p.experts(x, likeliest[1], scores, gate, up, down, activation=activation)

    def rewrite(self, m: Match) -> Value:
        normalise = m.shares is not None
        return nn.moe(m.x, m.logits, m.gate, m.up, m.down, m.k, m.activation, normalise)


class FuseMixtureOfTopLogits(_Mixture):
    """experts chosen by topk(logits), with the softmax of those logits  ->  nn.moe {normalise=true}."""

    def pattern(
        self,
        x: Variable,
        logits: Variable,
        gate: Variable,
        up: Variable,
        down: Variable,
        k: Variable,
        activation: Variable,
    ) -> Pattern:
        largest = p.topk(p.maybe(p.cast, logits), k=k, axis=-1)
        scores = p.maybe(p.cast, p.softmax(p.maybe(p.cast, largest[0])))
        return p.experts(x, largest[1], scores, gate, up, down, activation=activation)

    def rewrite(self, m: Match) -> Value:
        return nn.moe(m.x, m.logits, m.gate, m.up, m.down, m.k, m.activation)


class UnflattenMixture(Rule):
    """reshape(moe(reshape(x), linear(reshape(x), router)))  ->  moe(x, linear(x, router)): tokens need not lie in one
    row to be sent to experts."""

    def pattern(
        self,
        x: Variable,
        router: Variable,
        bias: Variable,
        gate: Variable,
        up: Variable,
        down: Variable,
    ) -> Pattern:
        flat = p.shared(p.reshape(x)).named("flat")
        logits = p.linear(flat, router, p.optional(bias))
        return p.reshape(p.moe(flat, logits, gate, up, down).named("moe"))

    def where(self, m: Match) -> bool | str:
        shape = m.x.type.shape
        if m.flat.type.shape[-1] != shape[-1] or m.flat.type.rank != 2:
            return "the features of a token do not stay together"
        return m.root.result.type.shape == (*shape[:-1], m.moe.type.shape[-1]) or "the tokens come out in another shape"

    def rewrite(self, m: Match) -> Value:
        moe = m.moe.op
        assert isinstance(moe, nn.MoE)
        return moe.rebuild((m.x, nn.linear(m.x, m.router, m.bias), m.gate, m.up, m.down)).result
