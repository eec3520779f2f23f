"""Tiny random models of the decoder architectures, saved by transformers itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from irlab import Module

Checkpoint: TypeAlias = Callable[..., Path]
Lifted: TypeAlias = Callable[..., Module]

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")

_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_SIZES_OF = {"qwen3": {"head_dim": 16}}


def save_model(path: Path, kind: str, dtype: str = "float32", **changes: Any) -> None:
    """A random model of architecture `kind`, with biases and norms that are not zeros and ones."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {**_SIZES, **_SIZES_OF.get(kind, {}), **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.rand_like(parameter) + (0.5 if "norm" in name else -0.5))
            else:
                parameter.mul_(8)  # so that logits tell tokens apart
    model.to(getattr(torch, dtype)).save_pretrained(path)


def hf_logits(directory: Path, ids: list[int]) -> Any:
    """What transformers computes from a directory, in its stored dtype: f32[tokens, vocab]."""
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0].float()
