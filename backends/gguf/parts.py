"""What is a decoder made of, and what are its widths? Blocks are matches in its graph, which `anatomy` finds."""

from __future__ import annotations

from dataclasses import dataclass, field

from irlab.ops import nn
from irlab.rewrite import Match


@dataclass(frozen=True)
class Attention:
    """The attention block of a layer."""

    layer: int
    match: Match

    @property
    def op(self) -> nn.Attention:
        op = self.match.attended.op
        assert isinstance(op, nn.Attention)
        return op

    @property
    def head_dim(self) -> int:
        return int(self.op.q.type.shape[3])  # type: ignore[arg-type]

    @property
    def heads(self) -> int:
        return int(self.op.q.type.shape[1])  # type: ignore[arg-type]

    @property
    def kv_heads(self) -> int:
        return int(self.op.k.type.shape[1])  # type: ignore[arg-type]

    @property
    def v_dim(self) -> int:
        return int(self.op.v.type.shape[3])  # type: ignore[arg-type]


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward block of a layer, a gated MLP or a mixture of such."""

    layer: int
    match: Match

    @property
    def width(self) -> int:
        """The neurons, of each expert."""
        return int(self.match.gate.type.shape[-2])

    @property
    def experts(self) -> int:
        """How many experts there are; 0 if it is no mixture."""
        return int(self.match.gate.type.shape[0]) if self.match.gate.type.rank == 3 else 0

    @property
    def experts_used(self) -> int:
        """How many of them each token meets."""
        return int(self.match.top_k) if self.experts else 0


@dataclass(frozen=True)
class Layer:
    """One transformer layer. A block that was taken out is None; a layer has one of them at least."""

    attention: Attention | None
    ffn: FeedForward | None

    @property
    def blocks(self) -> list[Attention | FeedForward]:
        """Those that are there, in order."""
        return [block for block in (self.attention, self.ffn) if block is not None]

    @property
    def widths(self) -> dict[str, int]:
        """The sizes in which layers may differ, by name in words: 0 where the block was taken out."""
        attention = self.attention
        return {
            "heads": attention.heads if attention else 0,
            "key/value heads": attention.kv_heads if attention else 0,
            "feed-forward neurons": self.ffn.width if self.ffn else 0,
            "experts": self.ffn.experts if self.ffn else 0,
            "experts to a token": self.ffn.experts_used if self.ffn else 0,
        }


@dataclass
class Decoder:
    """A decoder's parts, first layer first."""

    embedding: Match
    head: Match
    layers: list[Layer] = field(default_factory=list)

    @property
    def attentions(self) -> list[Attention]:
        return [layer.attention for layer in self.layers if layer.attention is not None]

    @property
    def ffns(self) -> list[FeedForward]:
        return [layer.ffn for layer in self.layers if layer.ffn is not None]

    @property
    def experts(self) -> int:
        """How many experts a mixture of it has; 0 if it has none."""
        return max((ffn.experts for ffn in self.ffns), default=0)

    @property
    def blocks(self) -> list[Attention | FeedForward]:
        return [block for layer in self.layers for block in layer.blocks]

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
        found = {self.head.eps} | {block.match.eps for block in self.blocks}
        for attention in self.attentions:
            found |= {e for e in (attention.match.q_eps, attention.match.k_eps) if e is not None}
        return found
