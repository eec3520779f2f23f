"""The tables from op class to lowering: what each profile can say in ONNX."""

from __future__ import annotations

from typing import Final

from irlab.backends.onnx.dialect import CachedAttention, FlatAttention, FlatRope, GroupQueryAttention, HybridLinear
from irlab.backends.onnx.emitter import Lowering
from irlab.backends.onnx.lowerings import (
    arithmetic,
    attention,
    calls,
    control,
    experts,
    hybrid,
    integer,
    layout,
    microsoft,
    neural,
    windows,
)
from irlab.backends.onnx.vocabulary import Vocabulary
from irlab.ir import Op
from irlab.ops import nn

STANDARD: dict[type[Op], Lowering] = {
    **arithmetic.LOWERINGS,
    **layout.LOWERINGS,
    **windows.LOWERINGS,
    **neural.LOWERINGS,
    **integer.LOWERINGS,
    **attention.LOWERINGS,
    **control.LOWERINGS,
    **calls.LOWERINGS,
}
"""The portable profile: ops of opset 23 only."""

FAST: dict[type[Op], Lowering] = {**STANDARD, **microsoft.LOWERINGS, **experts.LOWERINGS, **hybrid.LOWERINGS}
"""The fast profile: what ONNX Runtime has beyond that."""

WORDS: Final[dict[type[Op], tuple[tuple[str, Lowering], ...]]] = {
    nn.Linear: (("ms:MatMulNBits", microsoft.linear), ("MatMul", neural.linear)),
    nn.MoE: (("ms:MoE", experts.moe), ("ms:QMoE", experts.moe)),
    nn.Embedding: (("ms:GatherBlockQuantized", microsoft.embedding), ("Gather", neural.embedding)),
    nn.RMSNorm: (("RMSNormalization", neural.rms_norm), ("SimplifiedLayerNormalization", microsoft.rms_norm)),
    nn.LayerNorm: (("LayerNormalization", neural.layer_norm),),
    nn.Gelu: (("Gelu", neural.gelu),),
    FlatRope: (("RotaryEmbedding", attention.rope), ("ms:RotaryEmbedding", microsoft.rope)),
    FlatAttention: (("Attention", attention.attention),),
    CachedAttention: (("Attention", attention.cached),),
    GroupQueryAttention: (("ms:GroupQueryAttention", microsoft.group_query),),
    HybridLinear: (("ms:DynamicQuantizeMatMul", hybrid.hybrid_linear),),
}
"""The op of ONNX that each of these leans on, the best first. What a provider has no op for is decomposed."""


def lowerings(vocabulary: Vocabulary) -> dict[type[Op], Lowering]:
    """The lowerings that a file in this vocabulary uses."""
    chosen = dict(STANDARD if vocabulary.portable else FAST)
    for cls, choices in WORDS.items():
        found = next((lowering for op, lowering in choices if vocabulary.has(op)), None)
        if found is None:
            chosen.pop(cls, None)
        else:
            chosen[cls] = found
    chosen[nn.Linear] = integer.linear(chosen[nn.Linear])
    return chosen
