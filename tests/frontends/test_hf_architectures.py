"""Every decoder architecture, tiny and random: logits and tokens are transformers', stamping is the full export."""

from __future__ import annotations

import pytest
import torch
import transformers

import irlab
from irlab.checkpoint import find_checkpoint
from irlab.frontends.hf import lift_directory
from irlab.interp import evaluate
from irlab.ir import Module
from irlab.ops import nn, prim
from irlab.ops.call import Call
from irlab.weights import File

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# Name -> (configuration class, what differs from SMALL, the distinct (window, softcap) of its attention).
ARCHITECTURES = {
    "llama2": ("LlamaConfig", {"num_key_value_heads": 4}, {(0, 0.0)}),
    "llama3": ("LlamaConfig", {"tie_word_embeddings": True, "rope_scaling": LLAMA3_ROPE}, {(0, 0.0)}),
    "llama_mqa_biases": (
        "LlamaConfig",
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
        {(0, 0.0)},
    ),
    "mistral_window": ("MistralConfig", {"sliding_window": 8}, {(8, 0.0)}),
    "mistral_full": ("MistralConfig", {"sliding_window": None, "head_dim": 32}, {(0, 0.0)}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}, {(0, 0.0)}),
    "qwen2_mixed_windows": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
        {(0, 0.0), (8, 0.0)},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 32}, {(0, 0.0)}),
    "smollm3": ("SmolLM3Config", {"no_rope_layer_interval": 2}, {(0, 0.0)}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}, {(0, 0.0)}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "head_dim": 16,
            "mlp_only_layers": [1],
        },
        {(0, 0.0)},
    ),
    "qwen2_moe_shared_experts": (
        "Qwen2MoeConfig",
        {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
            "norm_topk_prob": True,
        },
        {(0, 0.0)},
    ),
    "olmoe": ("OlmoeConfig", {"num_experts": 8, "num_experts_per_tok": 2}, {(0, 0.0)}),
    # Through the general path: not among the promised ones, but they lift as well.
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 8}, {(0, 50.0), (8, 50.0)}),
    "phi3": ("Phi3Config", {}, {(0, 0.0)}),
    "gpt2_scaled_by_layer": (
        "GPT2Config",
        {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 128, "scale_attn_by_inverse_layer_idx": True},
        {(0, 0.0)},
    ),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request, tmp_path_factory):
    """(name, model, directory) of a random model, norms and biases included."""
    class_name, changes, _ = ARCHITECTURES[request.param]
    torch.manual_seed(0)
    small = {k: v for k, v in SMALL.items() if class_name != "GPT2Config" or k.endswith(("_id", "vocab_size"))}
    config = getattr(transformers, class_name)(**{**small, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for values in model.parameters():
            values.add_(torch.randn_like(values) * 0.1)
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory)
    return request.param, model, directory


@pytest.fixture(scope="module")
def lifted(architecture):
    return lift_directory(architecture[2])


def test_logits_are_those_of_transformers(architecture, lifted):
    _, model, _ = architecture
    ids = torch.randint(3, 128, (2, 21), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(ids).logits
    found = evaluate(lifted, {"input_ids": ids})["logits"].detach()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.argmax(-1), wanted.argmax(-1))


def test_greedy_tokens_are_those_of_transformers(architecture, lifted):
    _, model, _ = architecture
    prompt = torch.tensor([[5, 77, 19, 42, 101, 8, 33, 64, 12]])
    wanted = model.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)
    found = prompt
    for _ in range(6):
        logits = evaluate(lifted, {"input_ids": found})["logits"]
        found = torch.cat([found, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, wanted)


def test_stamping_equals_the_full_export(architecture, lifted):
    assert str(lifted) == str(lift_directory(architecture[2], stamp=False))


def test_the_graph_is_clean(architecture, lifted):
    name, model, _ = architecture
    graph = lifted.graph
    assert not graph.find(Call)
    assert [(v.name, str(v.type)) for v in graph.inputs] == [("input_ids", "i64[batch, seq]")]
    assert str(graph.outputs["logits"].type) == "f32[batch, seq, 128]"
    attention = graph.find(nn.Attention)
    assert len(attention) == model.config.num_hidden_layers
    assert {(op.window, op.softcap) for op in attention} == ARCHITECTURES[name][2]
    assert all(op.causal and op.mask is None for op in attention)
    # No mask and no position arithmetic: one iota, read by reshapes on the way to the rotary angles or the embedding.
    (positions,) = graph.find(prim.Iota)
    assert all(isinstance(use, prim.Reshape) for use in positions.result.uses)
    assert not graph.find(prim.Where) and not graph.find(prim.Lt) and not graph.find(prim.CumSum)


def test_weights_are_references_into_the_checkpoint(architecture, lifted):
    directory = architecture[2]
    held = {name: files_of(w.recipe) for name, w in lifted.weights.items()}
    files = {file for found in held.values() for file in found}
    assert {file.name for file in files} == set(find_checkpoint(directory))
    assert {file.path.parent for file in files} == {directory}
    # Only experts are more than one tensor of the checkpoint.
    assert all(len(found) <= 1 or ".experts." in name for name, found in held.items())
    computed = {name for name, found in held.items() if not found}
    assert computed <= {"model.rotary_emb.inv_freq", "model.embed_tokens.embed_scale"}


def files_of(recipe):
    return {recipe} if isinstance(recipe, File) else {file for source in recipe.inputs for file in files_of(source)}


@pytest.mark.parametrize("architecture", [n for n in ARCHITECTURES if "moe" in n or n == "mixtral"], indirect=True)
def test_mixtures_of_experts_are_fused(architecture, lifted):
    name, model, _ = architecture
    dense = len(getattr(model.config, "mlp_only_layers", None) or ())
    module = lifted.clone()
    assert len(module.graph.find(nn.Experts)) == 3 - dense
    fused = irlab.run(module, "fuse").graph
    moes = fused.find(nn.MoE)
    assert len(moes) == 3 - dense and not fused.find(nn.Experts)
    assert {op.normalise for op in moes} == {getattr(model.config, "norm_topk_prob", True)}
    assert {op.x.type.rank for op in moes} == ({2} if "shared" in name else {3})
    ids = torch.randint(3, 128, (2, 21), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(ids).logits
    found = evaluate(Module(fused), {"input_ids": ids})["logits"].detach()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
