"""What decoder is this graph? Finds embedding, layers and head by pattern, and says where it stops if it is none.

The graph alone decides: names and configurations are never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from irlab.errors import LegalityError
from irlab.explain import why_not
from irlab.ir import Graph, Module, Op, Value, Weight
from irlab.ops import nn, prim
from irlab.pattern import Pattern, p
from irlab.rewrite import Match, Rule, find


class AttentionBlock(Rule):
    """x + linear(attention(rope(q), rope(k), v)) over an rms_norm of x, with or without bias, q/k norm, rope, cache."""

    def pattern(
        self,
        x: Any, norm: Any, eps: Any,
        q: Any, k: Any, v: Any, o: Any, q_bias: Any, k_bias: Any, v_bias: Any, o_bias: Any,
        q_norm: Any, k_norm: Any, q_eps: Any, k_eps: Any,
        q_positions: Any, k_positions: Any, q_freq: Any, k_freq: Any, q_paired: Any, k_paired: Any,
        q_turn: Any, k_turn: Any, q_normed: Any, k_normed: Any, q_roped: Any, k_roped: Any,
        q_turned: Any, k_turned: Any, attended: Any, past_k: Any, past_v: Any, mask: Any, scale: Any, window: Any,
    ) -> Pattern:  # fmt: skip
        h = p.shared(p.rms_norm(x, norm, eps=eps))

        def heads(weight: Any, bias: Any) -> Pattern:
            return p.reshape(p.linear(h, weight, p.optional(bias)))

        def turned(
            split: Pattern,
            norm: Any,
            eps: Any,
            normed: Any,
            positions: Any,
            freq: Any,
            paired: Any,
            turn: Any,
            roped: Any,
        ) -> Pattern:
            normal = p.maybe(p.rms_norm, split, norm, eps=eps, flag=normed)
            rows = p.transpose(normal, perm=[0, 2, 1, 3])
            return p.maybe(p.rope, rows, positions, freq, interleaved=paired, scale=turn, flag=roped)

        queries = turned(heads(q, q_bias), q_norm, q_eps, q_normed, q_positions, q_freq, q_paired, q_turn, q_roped)
        keys = turned(heads(k, k_bias), k_norm, k_eps, k_normed, k_positions, k_freq, k_paired, k_turn, k_roped)
        queries, keys = queries.named(q_turned), keys.named(k_turned)
        values = p.transpose(heads(v, v_bias), perm=[0, 2, 1, 3])
        attention = p.attention(
            queries,
            p.any_of(p.shared(p.kv_update(past_k, keys)), keys),
            p.any_of(p.shared(p.kv_update(past_v, values)), values),
            p.optional(mask),
            causal=True, scale=scale, window=window, softcap=0.0,
        ).named(attended)  # fmt: skip
        out = p.linear(p.reshape(p.transpose(attention, perm=[0, 2, 1, 3])), o, p.optional(o_bias))
        return out + x


class MLPBlock(Rule):
    """x + gated_mlp(rms_norm(x))."""

    def pattern(
        self, x: Any, norm: Any, eps: Any, gate: Any, up: Any, down: Any,
        gate_bias: Any, up_bias: Any, down_bias: Any, activation: Any,
    ) -> Pattern:  # fmt: skip
        h = p.rms_norm(x, norm, eps=eps)
        biases = (p.optional(gate_bias), p.optional(up_bias), p.optional(down_bias))
        return p.gated_mlp(h, gate, up, down, *biases, activation=activation) + x


class Head(Rule):
    """linear(rms_norm(x)): the logits."""

    def pattern(self, x: Any, norm: Any, eps: Any, weight: Any, bias: Any) -> Pattern:
        return p.linear(p.rms_norm(x, norm, eps=eps), weight, p.optional(bias))


class Embed(Rule):
    """The token embedding."""

    def pattern(self, ids: Any, weight: Any) -> Pattern:
        return p.embedding(ids, weight)


@dataclass
class Layer:
    """One transformer layer, as two matches."""

    attention: Match
    mlp: Match

    @property
    def attention_op(self) -> nn.Attention:
        op = self.attention.attended.op
        assert isinstance(op, nn.Attention)
        return op

    @property
    def head_dim(self) -> int:
        return int(self.attention_op.q.type.shape[3])  # type: ignore[arg-type]

    @property
    def n_heads(self) -> int:
        return int(self.attention_op.q.type.shape[1])  # type: ignore[arg-type]

    @property
    def n_kv_heads(self) -> int:
        return int(self.attention_op.k.type.shape[1])  # type: ignore[arg-type]

    @property
    def v_dim(self) -> int:
        return int(self.attention_op.v.type.shape[3])  # type: ignore[arg-type]


@dataclass
class Decoder:
    """A decoder's parts, first layer first."""

    embedding: Match
    head: Match
    layers: list[Layer] = field(default_factory=list)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding table."""
        return self.head.weight is self.embedding.weight

    @property
    def hidden(self) -> int:
        return int(self.embedding.weight.type.shape[1])

    @property
    def vocabulary(self) -> int:
        return int(self.embedding.weight.type.shape[0])

    @property
    def eps(self) -> set[float]:
        """Every epsilon of its norms."""
        found = {self.head.eps}
        for layer in self.layers:
            found |= {layer.attention.eps, layer.mlp.eps}
            found |= {e for e in (layer.attention.q_eps, layer.attention.k_eps) if e is not None}
        return found


def dissect(module: Module) -> Decoder:
    """The decoder that computes "logits" in `module`. Raises LegalityError, naming the op where it is none."""
    graph = module.graph
    _check_interface(graph)
    attention, mlp, embed = (_matches(graph, rule) for rule in (AttentionBlock(), MLPBlock(), Embed()))
    top = graph.outputs["logits"].op
    heads = _matches(graph, Head())
    if top not in heads:
        raise _stop(graph, top, Head(), "the logits")
    head = heads[top]
    layers: list[Layer] = []
    at = head.x.op
    while at not in embed:
        if at not in mlp:
            raise _stop(graph, at, MLPBlock(), "a feed-forward block")
        block = mlp[at]
        if block.x.op not in attention:
            raise _stop(graph, block.x.op, AttentionBlock(), "an attention block")
        layers.append(Layer(attention[block.x.op], block))
        at = layers[-1].attention.x.op
    decoder = Decoder(embed[at], head, layers[::-1])
    _check_parts(graph, decoder)
    return decoder


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
    for number, layer in enumerate(decoder.layers):
        parts += [(f"layer {number}'s attention", layer.attention), (f"layer {number}'s MLP", layer.mlp)]
    for name, match in parts:
        for variable, value in match.captures.items():
            if isinstance(value, Value) and variable not in _ACTIVATIONS and not isinstance(value.op, Weight):
                raise LegalityError(f"GGUF: the {variable} of {name} is computed, not a weight", "fold it, or use ONNX")
    if decoder.embedding.ids.op is not None:
        raise LegalityError("GGUF: token ids must come straight from the input")
    for number, layer in enumerate(decoder.layers):
        match = layer.attention
        if match.mask is not None and not _is_padding_mask(match.mask):
            raise LegalityError(f"GGUF: layer {number} attends under a mask of its own", "only causal masks are held")
        for positions in (match.q_positions, match.k_positions):
            if positions is not None and not _counts(positions):
                raise LegalityError(f"GGUF: layer {number} turns by positions that are computed")


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
