"""The fuse pass: primitives raised to the LLM-level ops they spell out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from irlab.passes.fuse.attention import (
    FuseAttention,
    FuseCausalMask,
    FuseGroupedAttention,
    FuseSoftmax,
    FuseWindowMask,
    ShareKVHeads,
)
from irlab.passes.fuse.embedding import FuseEmbedding
from irlab.passes.fuse.experts import FuseMixture, FuseMixtureOfTopLogits, UnflattenMixture
from irlab.passes.fuse.linear import FuseBias, FuseLinear
from irlab.passes.fuse.mlp import FuseGatedMLP, FuseGelu, FuseGeluTanh, FuseSilu
from irlab.passes.fuse.norms import FuseCentredNorm, FuseLayerNorm, FuseNormBias, FuseRMSNorm
from irlab.passes.fuse.rope import FuseInterleavedRope, FusePartialRope, FuseRope, FuseSplitRope
from irlab.passmgr import RulePass
from irlab.rewrite import Rule

RULES: Final[tuple[Rule, ...]] = (
    # Norms first: their casts would otherwise look like leftovers to every rule below.
    FuseRMSNorm(),
    FuseLayerNorm(),
    FuseCentredNorm(),
    FuseNormBias(),
    # Linears before what is recognised around them.
    FuseLinear(),
    FuseBias(),
    FuseGelu(),
    FuseGeluTanh(),
    FuseSilu(),
    FuseEmbedding(),
    FuseRope(),
    FuseSplitRope(),
    FuseInterleavedRope(),
    FusePartialRope(),
    FuseSoftmax(),
    FuseAttention(),
    FuseGroupedAttention(),
    FuseCausalMask(),
    FuseWindowMask(),
    ShareKVHeads(),
    FuseMixture(),
    FuseMixtureOfTopLogits(),
    UnflattenMixture(),
    # Last: it consumes the linears and the activation.
    FuseGatedMLP(),
)
"""Tried in this order at each op. One instance each, so that patterns are compiled once."""


@dataclass(frozen=True)
class Fuse(RulePass, name="fuse", exactness="close", rtol=1e-4):
    """Raises primitives to nn ops: norms, rope, attention, gated MLP, mixture of experts, GELU, linear with bias.

    A Llama block then reads as about ten nn ops:

        %h = nn.rms_norm(%x, @input_layernorm.weight)
        %q = nn.linear(%h, @q_proj.weight)          (and k, v; split into heads)
        %q2 = nn.rope(%q1, %positions, @inv_freq)   (and k)
        %a = nn.attention(%q2, %k2, %v1)
        %o = nn.linear(%a2, @o_proj.weight)
        %m = nn.gated_mlp(%h2, @gate_proj.weight, @up_proj.weight, @down_proj.weight)

    Residual additions and layouts stay as they are: what helps there depends on the target (see fuse-residual-norm,
    fuse-qkv, fuse-gate-up).
    """

    def rules(self) -> Sequence[Rule]:
        return RULES
