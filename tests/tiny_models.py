"""Tiny models with random weights, one of each architecture, made where a test wants them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ARCHITECTURES = ("llama", "llama3", "mistral", "qwen2", "qwen3", "smollm3", "llama-tied", "qwen3-tied", "llama-biased")
"""What the hf frontend and the backends must carry; "llama3" has its rope scaling."""

MIXTURES = ("mixtral", "qwen3_moe")
"""Mixtures of experts, which fewer backends carry."""

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 96,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_SPECIAL: dict[str, dict[str, Any]] = {
    "llama3": {"rope_parameters": _LLAMA3_ROPE},
    "smollm3": {"num_hidden_layers": 5},
    "llama-tied": {"tie_word_embeddings": True},
    "qwen3-tied": {"tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True},
    "llama-biased": {"attention_bias": True, "mlp_bias": True},
}


def tiny_model(directory: Path, kind: str, *, dtype: str = "float32", **config: Any) -> Path:
    """A random model of `kind`, saved to `directory` as Hugging Face saves models; biases and norms are random too."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    family = {"llama3": "llama"}.get(kind, kind.partition("-")[0])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**(_COMMON | _SPECIAL.get(kind, {}) | config)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
            elif parameter.ndim == 1:
                parameter.normal_(1.0, 0.2)
            else:
                # Larger than usual, so that attention is not flat and a wrong position shows.
                parameter.normal_(0.0, 0.15)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return directory
