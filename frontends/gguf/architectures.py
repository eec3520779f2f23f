"""Which of transformers' models computes what a GGUF file holds, with which configuration? A row per architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from irlab.errors import InputError
from irlab.weights.gguf import GGUFFile


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    name:         `general.architecture`.
    model_type:   transformers' name for the model; its class generates text.
    class_name:   that class.
    paired_rope:  whether rows of queries and keys stand as neighbours are turned (i, i + 1), which transformers' models
                  turn halves apart.
    config:       what else the configuration says.
    """

    name: str
    model_type: str
    class_name: str
    paired_rope: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)


ARCHITECTURES: Final = {
    row.name: row
    for row in (
        # Mistral's files are of this architecture too, and llama.cpp computes both alike.
        Architecture("llama", "llama", "LlamaForCausalLM", paired_rope=True),
        Architecture("qwen2", "qwen2", "Qwen2ForCausalLM", config={"use_sliding_window": False}),
        Architecture("qwen3", "qwen3", "Qwen3ForCausalLM", config={"use_sliding_window": False}),
        Architecture(
            "smollm3", "smollm3", "SmolLM3ForCausalLM", paired_rope=True, config={"use_sliding_window": False}
        ),
    )
}

_UNREAD: Final = ("expert_count", "attention.scale", "logit_scale", "residual_scale", "embedding_scale")
"""Keys after the architecture's name that change what is computed, and that no row of the table means."""


def architecture(file: GGUFFile) -> Architecture:
    """The row of `file`. Raises InputError for an architecture that irlab does not lift."""
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"{file.path}: models of the architecture {name!r} are not lifted", f"known: {known}")
    return ARCHITECTURES[name]


class Keys:
    """The metadata of `file` under the name of its architecture."""

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.prefix = file, str(file.metadata.get("general.architecture"))

    def get(self, key: str, kind: type[int] | type[float], default: Any = None) -> Any:
        """`ARCHITECTURE.key`, which is a positive `kind`; `default` where it is missing. Raises InputError."""
        full = f"{self.prefix}.{key}"
        value = self.file.metadata.get(full, default)
        if value is None:
            raise InputError(f"{self.file.path}: the file has no {full}")
        wanted = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        if not wanted or not 0 < value < 1 << 40:
            raise InputError(f"{self.file.path}: {full} is {value!r}, which is no positive number")
        return kind(value)

    def refuse_unread(self) -> None:
        for key in _UNREAD:
            value = self.file.metadata.get(f"{self.prefix}.{key}")
            if value:
                raise InputError(f"{self.file.path}: {self.prefix}.{key} is {value}, which irlab does not lift")


def config(file: GGUFFile, row: Architecture) -> dict[str, Any]:
    """The config.json of `file`. Raises InputError for metadata that is missing, or that transformers' model has no
    counterpart for."""
    keys = Keys(file)
    keys.refuse_unread()
    heads = keys.get("attention.head_count", int)
    hidden = keys.get("embedding_length", int)
    head_dim = keys.get("attention.key_length", int, hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := keys.get(key, int, head_dim)) != head_dim:
            raise InputError(f"{file.path}: {row.name}.{key} is {other}, and heads have {head_dim} features")
    embedding = file.entry("token_embd.weight").shape
    found = {
        "architectures": [row.class_name],
        "model_type": row.model_type,
        "hidden_size": hidden,
        "intermediate_size": keys.get("feed_forward_length", int),
        "num_hidden_layers": keys.get("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get("attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": keys.get("attention.layer_norm_rms_epsilon", float),
        "max_position_embeddings": keys.get("context_length", int),
        "rope_parameters": _rope(keys),
        "vocab_size": embedding[0] if embedding else 0,
        "tie_word_embeddings": "output.weight" not in file.entries,
        "attention_bias": "blk.0.attn_output.bias" in file.entries,
        "mlp_bias": "blk.0.ffn_down.bias" in file.entries,
        **row.config,
    }
    for ours, theirs in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
        number = file.metadata.get(f"tokenizer.ggml.{ours}_token_id")
        found[theirs] = number if isinstance(number, int) else None
    return found


def _rope(keys: Keys) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_theta": keys.get("rope.freq_base", float, 10000.0), "rope_type": "default"}
    scaling = keys.file.metadata.get(f"{keys.prefix}.rope.scaling.type", "none")
    if scaling == "linear":
        return found | {"rope_type": "linear", "factor": keys.get("rope.scaling.factor", float)}
    if scaling != "none":
        raise InputError(f"{keys.file.path}: rotary scaling of the kind {scaling!r} is not lifted")
    return found
