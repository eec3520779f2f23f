"""The LLM-level ops under one name: `nn.RMSNorm` is the op class, `nn.rms_norm(x, w)` builds one and gives its value.

Each op has `decompose()`: an expression in primitives that *is* its meaning. The interpreter's fast kernels and every
fusion are checked against it. Attention tensors are [batch, heads, seq, head_dim], as in torch and ONNX.
"""

from .activations import ACTIVATIONS, Gelu, HardShrink, Silu, Softmax, activate, gelu, hard_shrink, silu, softmax
from .attention import Attention, KVUpdate, Rope, attention, kv_update, rope
from .experts import Experts, MoE, experts, moe
from .linear import Embedding, Linear, LowRankLinear, decode, embedding, linear, low_rank_linear
from .mlp import GatedMLP, gated_mlp
from .nn_op import NNOp
from .norms import AddRMSNorm, LayerNorm, RMSNorm, add_rms_norm, layer_norm, rms_norm
from .rounding import (
    BLOCK,
    E2M1_MAX,
    E4M3_MAX,
    LEAST_MAGNITUDE,
    ActivationRounding,
    DequantizeCache,
    QuantizeActivation,
    QuantizeActivationFloat,
    QuantizeCache,
    dequantize_cache,
    quantize_activation,
    quantize_activation_float,
    quantize_cache,
)

__all__ = [
    "ACTIVATIONS",
    "BLOCK",
    "E2M1_MAX",
    "E4M3_MAX",
    "LEAST_MAGNITUDE",
    "ActivationRounding",
    "AddRMSNorm",
    "Attention",
    "DequantizeCache",
    "Embedding",
    "Experts",
    "GatedMLP",
    "Gelu",
    "HardShrink",
    "KVUpdate",
    "LayerNorm",
    "Linear",
    "LowRankLinear",
    "MoE",
    "NNOp",
    "QuantizeActivation",
    "QuantizeActivationFloat",
    "QuantizeCache",
    "RMSNorm",
    "Rope",
    "Silu",
    "Softmax",
    "activate",
    "add_rms_norm",
    "attention",
    "decode",
    "dequantize_cache",
    "embedding",
    "experts",
    "gated_mlp",
    "gelu",
    "hard_shrink",
    "kv_update",
    "layer_norm",
    "linear",
    "low_rank_linear",
    "moe",
    "quantize_activation",
    "quantize_activation_float",
    "quantize_cache",
    "rms_norm",
    "rope",
    "silu",
    "softmax",
]
