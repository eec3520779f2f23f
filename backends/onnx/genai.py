"""What does onnxruntime-genai need beside the model? genai_config.json and the tokenizer's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

from irlab.backends.onnx.dialect import CachedAttention, GroupQueryAttention
from irlab.backends.onnx.writer import MODEL_FILE
from irlab.errors import LegalityError
from irlab.ir import Graph, Module

CONFIG_FILE: Final = "genai_config.json"

ACCURACY_KEY: Final = "session.qdq_matmulnbits_accuracy_level"
"""The session option by which ONNX Runtime rounds activations of fused DequantizeLinear and MatMul."""

TOKENIZER_FILES: Final = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip

DIFFERENT_CACHES: Final = (
    "layers have caches of different shapes: onnxruntime-genai reads them off the model (0.18 does; older ones may not)"
)

_DEFAULT_LENGTH: Final = 2048
_KV: Final = "past_key_values."


def is_cached_decoder(graph: Graph) -> bool:
    """Whether the graph has the inputs and outputs of a decoder after the kv-cache pass."""
    names = {value.name for value in graph.inputs}
    return {"input_ids", "attention_mask", f"{_KV}0.key"} <= names and "logits" in graph.outputs


def require_layout(graph: Graph) -> None:
    """Raise LegalityError unless onnxruntime-genai can drive the graph."""
    if not is_cached_decoder(graph):
        raise LegalityError(
            "layout=genai needs a decoder with a cache", "add kv-cache to the passes, or emit onnx{layout=plain}"
        )
    known = ("input_ids", "attention_mask", "position_ids")
    caches = [v.name for v in graph.inputs if (v.name or "").startswith(_KV)]
    numbered = [f"{_KV}{n}.{part}" for n in range(len(caches) // 2) for part in ("key", "value")]
    if set(caches) != set(numbered):
        missing = next((name for name in numbered if name not in caches), caches[-1])
        raise LegalityError(
            f"onnxruntime-genai counts caches from 0, and {missing} does not fit in", "run kv-cache after drop-layers"
        )
    if any(isinstance(size, int) for v in graph.inputs if v.name in known for size in v.type.shape[1:]):
        raise LegalityError("onnxruntime-genai feeds prompts of any length", "leave fixed= out, or emit layout=plain")
    strange = [v.name for v in graph.inputs if v.name not in known and not (v.name or "").startswith(_KV)]
    if strange:
        raise LegalityError(f"onnxruntime-genai has no value for the input '{strange[0]}'", "emit onnx{layout=plain}")


def cache_shapes(graph: Graph) -> list[tuple[int, int]]:
    """The kv heads and the head size of each cache input, which is [batch, kv_heads, past, head_size]."""
    shapes = [value.type.shape for value in graph.inputs if (value.name or "").startswith(_KV)]
    return [(kv_heads, size) for _, kv_heads, _, size in shapes if isinstance(kv_heads, int) and isinstance(size, int)]


def caches_differ(graph: Graph) -> bool:
    """Whether layers have caches of different heads or head sizes, as after pruning."""
    return len(set(cache_shapes(graph))) > 1


def context_length(module: Module, max_length: int) -> int:
    """How many positions the model is made for: `max_length` if given, else what the config says."""
    stated = module.metadata.get("config", {}).get("max_position_embeddings")
    return max_length or (stated if isinstance(stated, int) and stated > 0 else 0)


def config(module: Module, max_length: int, accuracy_level: int = 4, provider: str = "") -> dict[str, Any]:
    """genai_config.json of a legalised module. The type "decoder" is neutral to the architecture. `provider`: an
    execution provider; empty for the default, the CPU."""
    graph = module.graph
    shapes = cache_shapes(graph)
    attentions = graph.find(GroupQueryAttention)
    length = context_length(module, max_length) or _DEFAULT_LENGTH
    model: dict[str, Any] = {
        "type": "decoder",
        "vocab_size": graph.outputs["logits"].type.shape[-1],
        "context_length": length,
        **special_tokens(module),
        "decoder": {
            "filename": MODEL_FILE,
            "session_options": {
                "log_id": "onnxruntime-genai",
                # What ONNX Runtime makes of DequantizeLinear and MatMul; MatMulNBits states its own level.
                ACCURACY_KEY: str(accuracy_level),
                "provider_options": [{provider: {}}] if provider else [],
            },
            # Where layers differ, genai reads the shape of each cache off the graph.
            "head_size": max(size for _, size in shapes),
            "num_hidden_layers": len(shapes) // 2,
            "num_key_value_heads": max(kv_heads for kv_heads, _ in shapes),
            "inputs": {
                **{v.name: v.name for v in graph.inputs if not (v.name or "").startswith(_KV)},
                "past_key_names": f"{_KV}%d.key",
                "past_value_names": f"{_KV}%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    heads = [op.heads for op in attentions] + [op.heads for op in graph.find(CachedAttention)]
    if heads:
        model["decoder"]["num_attention_heads"] = max(heads)
    # Only GroupQueryAttention writes into the buffer that it reads.
    shared = len(attentions) * 2 == len(shapes)
    return {"model": model, "search": {"max_length": length, "past_present_share_buffer": shared}}


def special_tokens(module: Module) -> dict[str, int | list[int]]:
    """The ids of begin, end and padding, as far as the model states them and has them: onnxruntime-genai refuses ids
    outside the vocabulary. Padding must be named; any token will do where the model has none."""
    hf, generation = module.metadata.get("config", {}), module.metadata.get("generation_config", {})
    vocabulary = module.graph.outputs["logits"].type.shape[-1]
    found: dict[str, int | list[int]] = {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        stated = generation.get(key, hf.get(key))
        ids = [i for i in (stated if isinstance(stated, list) else [stated]) if isinstance(i, int)]
        valid = [i for i in ids if isinstance(vocabulary, int) and 0 <= i < vocabulary]
        if valid:
            found[key] = valid if key == "eos_token_id" and len(valid) > 1 else valid[0]
    end = found.get("eos_token_id", 0)
    return {"pad_token_id": end[0] if isinstance(end, list) else end} | found


def write_companions(module: Module, directory: Path, max_length: int, accuracy_level: int, provider: str = "") -> None:
    """Write genai_config.json and copy the tokenizer's files."""
    (directory / CONFIG_FILE).write_bytes(_config_text(module, max_length, accuracy_level, provider))
    for file in _tokenizer_files(module):
        shutil.copyfile(file, directory / file.name)


def companion_bytes(module: Module, max_length: int, accuracy_level: int, provider: str = "") -> int:
    """The bytes that `write_companions` writes."""
    copied = sum(file.stat().st_size for file in _tokenizer_files(module))
    return len(_config_text(module, max_length, accuracy_level, provider)) + copied


def _config_text(module: Module, max_length: int, accuracy_level: int, provider: str) -> bytes:
    return (json.dumps(config(module, max_length, accuracy_level, provider), indent=2) + "\n").encode()


def _tokenizer_files(module: Module) -> list[Path]:
    source = module.metadata.get("tokenizer")
    files = [Path(source) / name for name in TOKENIZER_FILES] if source else []
    return [file for file in files if file.is_file()]
