"""What decoder is this graph? Finds embedding, layers and head by pattern, and says where it stops if it is none.

The graph alone decides: names and configurations are never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from irlab.backends.gguf.parts import Attention, Decoder, FeedForward, Layer
from irlab.errors import LegalityError
from irlab.explain import why_not
from irlab.ir import Graph, Module, Op, Value, Weight
from irlab.ops import nn, prim
from irlab.pattern import Pattern, Variable, p
from irlab.residual import require_no_shortcuts
from irlab.rewrite import Match, Rule, find


class AttentionBlock(Rule):
    """x + linear(attention(rope(q), rope(k), v)) over an rms_norm of x, with or without bias, q/k norm, rope, cache.

    What belongs to the queries is captured as q (the weight), q_bias, q_norm, q_freq ...; so for k and v.
    """

    def pattern(self) -> Pattern:
        h = p.shared(p.rms_norm(p.var("x"), p.var("norm"), eps=p.var("eps")))
        values = p.transpose(_projected(h, "v"), perm=[0, 2, 1, 3])
        attention = p.attention(
            _turned(h, "q"),
            _cached(_turned(h, "k"), "past_k"),
            _cached(values, "past_v"),
            p.optional(p.var("mask")),
            causal=True,
            scale=p.var("scale"),
            window=p.var("window"),
            softcap=0.0,
        ).named("attended")
        rows = p.reshape(p.transpose(attention, perm=[0, 2, 1, 3]))
        return p.linear(rows, p.var("o"), p.optional(p.var("o_bias"))) + p.var("x")


def _projected(h: Pattern, name: str) -> Pattern:
    return p.reshape(p.linear(h, p.var(name), p.optional(p.var(f"{name}_bias"))))


def _turned(h: Pattern, name: str) -> Pattern:
    def part(of: str) -> Variable:
        return p.var(f"{name}_{of}")

    normed = p.maybe(p.rms_norm, _projected(h, name), part("norm"), eps=part("eps"), flag=part("normed"))
    heads = p.transpose(normed, perm=[0, 2, 1, 3])
    rope = {"interleaved": part("paired"), "scale": part("turn")}
    return p.maybe(p.rope, heads, part("positions"), part("freq"), flag=part("roped"), **rope).named(f"{name}_turned")


def _cached(new: Pattern, past: str) -> Pattern:
    return p.any_of(p.shared(p.kv_update(p.var(past), new)), new)


class MLPBlock(Rule):
    """x + gated_mlp(rms_norm(x))."""

    def pattern(self) -> Pattern:
        h = p.rms_norm(p.var("x"), p.var("norm"), eps=p.var("eps"))
        matrices = [p.var(name) for name in ("gate", "up", "down")]
        biases = [p.optional(p.var(f"{name}_bias")) for name in ("gate", "up", "down")]
        return p.gated_mlp(h, *matrices, *biases, activation=p.var("activation")) + p.var("x")


class MoEBlock(Rule):
    """x + moe(rms_norm(x)), the router a linear over the same norm."""

    def pattern(self) -> Pattern:
        h = p.shared(p.rms_norm(p.var("x"), p.var("norm"), eps=p.var("eps")))
        logits = p.linear(h, p.var("router"), p.optional(p.var("router_bias")))
        stacks = [p.var(name) for name in ("gate", "up", "down")]
        attributes = {name: p.var(name) for name in ("top_k", "activation", "normalise")}
        return p.moe(h, logits, *stacks, **attributes) + p.var("x")


class Head(Rule):
    """linear(rms_norm(x)): the logits."""

    def pattern(self) -> Pattern:
        h = p.rms_norm(p.var("x"), p.var("norm"), eps=p.var("eps"))
        return p.linear(h, p.var("weight"), p.optional(p.var("bias")))


class Embed(Rule):
    """The token embedding, perhaps cast to the dtype of the layers."""

    def pattern(self) -> Pattern:
        return p.maybe(p.cast, p.embedding(p.var("ids"), p.var("weight")))


_ATTENTION, _MLP, _MOE, _HEAD, _EMBED = AttentionBlock(), MLPBlock(), MoEBlock(), Head(), Embed()
"""Rules keep their compiled patterns, and a graph is looked at several times."""


ROUNDED: Final = "llama.cpp rounds activations itself, to 8 bits in blocks of 32, for every encoded matrix"
"""Why rounded activations have no place in a file."""


def dissect(module: Module) -> Decoder:
    """The decoder that computes "logits" in `module`. Raises LegalityError, naming the op where it is none."""
    graph = module.graph
    _check_interface(graph)
    for op in [*graph.find(nn.QuantizeActivation), *graph.find(nn.QuantizeActivationFloat)]:
        where = op.loc.path if op.loc is not None else "the graph"
        raise LegalityError(f"GGUF: {op.opname} in {where}: {ROUNDED}", "emit GGUF without quantize-activations")
    for shrink in graph.find(nn.HardShrink):
        where = shrink.loc.path if shrink.loc is not None else "the graph"
        reason = "llama.cpp has no thresholds of activations"
        raise LegalityError(
            f"GGUF: {shrink.opname} in {where}: {reason}", "emit GGUF without dynamic-sparsity, or onnx"
        )
    require_no_shortcuts(graph, "GGUF")
    attention, dense, mixed, embed = (_matches(graph, rule) for rule in (_ATTENTION, _MLP, _MOE, _EMBED))
    mlp = dense | mixed
    top = graph.outputs["logits"].op
    heads = _matches(graph, _HEAD)
    if top not in heads:
        raise _stop(graph, top, _HEAD, "the logits")
    head = heads[top]
    blocks: list[tuple[Match, bool]] = []
    at = head.x.op
    while at not in embed:
        if at in mlp or at in attention:
            blocks.append((mlp[at], False) if at in mlp else (attention[at], True))
            at = blocks[-1][0].x.op
        elif blocks and not blocks[-1][1]:
            raise _stop(graph, at, _ATTENTION, "an attention block")
        else:
            mixture = bool(graph.find(nn.MoE) or graph.find(nn.Experts))
            raise _stop(graph, at, _MOE if mixture else _MLP, "a feed-forward block")
    if not blocks:
        raise LegalityError("GGUF holds decoders, and this one has no layers", "emit onnx")
    decoder = Decoder(embed[at], head, _layers(blocks[::-1]))
    _check_parts(graph, decoder)
    return decoder


def _layers(blocks: Iterable[tuple[Match, bool]]) -> list[Layer]:
    """Blocks in order, each with whether it attends, as layers: attention and feed-forward block, or one of them."""
    layers: list[Layer] = []
    for match, attends in blocks:
        if attends:
            layers.append(Layer(Attention(len(layers), match), None))
        elif layers and layers[-1].ffn is None:
            layers[-1] = replace(layers[-1], ffn=FeedForward(len(layers) - 1, match))
        else:
            layers.append(Layer(None, FeedForward(len(layers), match)))
    return layers


def _matches(graph: Graph, rule: Rule) -> dict[Op | None, Match]:
    return {match.root: match for match in find(graph, rule)}


def _check_interface(graph: Graph) -> None:
    if "logits" not in graph.outputs:
        raise LegalityError("GGUF holds decoders, and the graph has no output 'logits'", "use --emit onnx")
    extra = [n for n in graph.outputs if n != "logits" and not n.startswith("present.")]
    if extra:
        raise LegalityError(
            f"a GGUF file gives logits only, not the output '{extra[0]}'", "remove it with strip-unused"
        )


def _stop(graph: Graph, op: Op | None, rule: Rule, part: str) -> LegalityError:
    """Say where the graph stops being a decoder, with the nearest miss of the pattern that was expected there."""
    if op is None:
        return LegalityError(f"{part} of the graph is an input, where GGUF needs {rule.name}")
    place = f"{op.opname} at {op.loc.path}" if op.loc and op.loc.path else op.opname
    reason = next((miss for miss in why_not(graph, rule) if miss.op is op), None)
    detail = f": {reason.reason}" if reason is not None else ""
    hint = "run fuse before emitting" if not graph.find(nn.Attention) or graph.find(prim.Rsqrt) else "see --plan"
    return LegalityError(f"GGUF cannot hold {place}, where it expects {part}{detail}", hint)


_ACTIVATIONS = frozenset(
    {"x", "past_k", "past_v", "mask", "ids", "q_positions", "k_positions", "q_turned", "k_turned", "attended"}
)
"""What the patterns capture besides weights."""


def _check_parts(graph: Graph, decoder: Decoder) -> None:
    parts = [("the embedding", decoder.embedding), ("the head", decoder.head)]
    for attention in decoder.attentions:
        parts.append((f"layer {attention.layer}'s attention", attention.match))
    for ffn in decoder.ffns:
        parts.append((f"layer {ffn.layer}'s MLP", ffn.match))
    for name, match in parts:
        for variable, value in match.captures.items():
            if isinstance(value, Value) and variable not in _ACTIVATIONS and not isinstance(value.op, Weight):
                raise LegalityError(f"GGUF: the {variable} of {name} is computed, not a weight", "fold it, or use ONNX")
    if decoder.embedding.ids.op is not None:
        raise LegalityError("GGUF: token ids must come straight from the input")
    for attention in decoder.attentions:
        match = attention.match
        if match.mask is not None and not _is_padding_mask(match.mask):
            raise LegalityError(
                f"GGUF: layer {attention.layer} attends under a mask of its own", "only causal masks are held"
            )
        for positions in (match.q_positions, match.k_positions):
            if positions is not None and not _counts(positions):
                raise LegalityError(f"GGUF: layer {attention.layer} turns by positions that are computed")


def _is_padding_mask(mask: Value) -> bool:
    """Whether a mask only hides padding: `attention_mask != 0`, as kv-cache builds it."""
    op = mask.op
    return (
        isinstance(op, prim.Ne)
        and isinstance(op.x.op, prim.Reshape)
        and op.x.op.x.op is None
        and op.x.op.x.name == "attention_mask"
    )


def _counts(positions: Value) -> bool:
    """Whether positions are those of the tokens: the input of a cached decoder, or 0, 1, 2 ..."""
    op = positions.op
    while isinstance(op, prim.Reshape | prim.Expand):
        positions, op = op.x, op.x.op
    if op is None:
        return positions.name == "position_ids"
    return isinstance(op, prim.Iota) and op.start == 0 and op.step == 1
