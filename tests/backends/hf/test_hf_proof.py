"""The IR is changed, and config.json follows or the graph is refused: never a file that computes something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import Checkpoint, Lifted, hf_logits
from small_llama import Llama

import irlab
from irlab import GraphBuilder, Module, nn, prim
from irlab.backends.hf.proof import prove
from irlab.errors import LegalityError
from irlab.ir import Op, Weight
from irlab.weights import Literal, Slice, WeightSymbol, static_shape

IDS = [5, 17, 3, 88, 41, 2, 63, 9, 30, 71]

Mutation = Callable[[Module], None]


def attribute(cls: type[Op], count: int | None = None, **changes: Any) -> Mutation:
    """Sets attributes of the first `count` ops of a class."""

    def mutate(module: Module) -> None:
        for op in module.graph.find(cls)[:count]:
            module.graph.replace(op, *op.rebuild(op.operands, **changes).results)

    return mutate


def drop_rope(module: Module, count: int | None = None) -> None:
    for op in module.graph.find(nn.Rope)[:count]:
        module.graph.replace(op, op.x)


def drop_bias(module: Module, count: int | None = None) -> None:
    for op in [op for op in module.graph.find(nn.Linear) if op.bias is not None][:count]:
        module.graph.replace(op, nn.linear(op.x, op.weight))


def drop_layer(module: Module, number: int) -> None:
    """Lets what follows a layer read what the layer read."""
    additions = [op for op in module.graph.topo() if isinstance(op, prim.Add)]
    into, out_of = additions[2 * number], additions[2 * number + 1]
    module.graph.replace_uses(out_of.result, into.operands[0])
    module.graph.erase_dead()


def change_weights(module: Module, part: str, change: Callable[[WeightSymbol], WeightSymbol]) -> None:
    for op in module.graph.find(Weight):
        if part in op.symbol.name:
            module.graph.replace(op, prim.weight(change(op.symbol)))


def frequencies(module: Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def changed(symbol: WeightSymbol) -> WeightSymbol:
        values = change(torch.tensor(symbol.recipe.values))
        return WeightSymbol(symbol.name, Literal(symbol.type, tuple(values.tolist())))

    change_weights(module, "inv_freq", changed)


def theta(value: float) -> Mutation:
    def powers(old: torch.Tensor) -> torch.Tensor:
        n = len(old)
        return 1.0 / value ** (torch.arange(0, 2 * n, 2).float() / (2 * n))

    return partial(frequencies, change=powers)


def prune_mlp(module: Module, width: int, count: int | None = None) -> None:
    """Cuts gated MLPs down to their first `width` neurons."""
    for op in module.graph.find(nn.GatedMLP)[:count]:
        matrices = []
        for value, axis in ((op.gate, 0), (op.up, 0), (op.down, 1)):
            symbol = value.op.symbol
            cut = Slice(symbol.recipe, axis, 0, width)
            matrices.append(prim.weight(WeightSymbol(symbol.name + ".cut", cut)))
        module.graph.replace(op, nn.gated_mlp(op.x, *matrices, activation=op.activation))


def untie(module: Module) -> None:
    """Gives the head its own copy of a tied table."""
    head = module.graph.outputs["logits"].op
    old = head.weight.op.symbol
    module.graph.replace(head, nn.linear(head.x, prim.weight(WeightSymbol("own", old.recipe))))


FOLLOWED: dict[str, tuple[str, dict[str, Any], Mutation, dict[str, Any]]] = {
    "eps": ("llama", {}, attribute(nn.RMSNorm, eps=0.5), {"rms_norm_eps": 0.5}),
    "activation": (
        "llama",
        {},
        attribute(nn.GatedMLP, activation="gelu_tanh"),
        {"hidden_act": "gelu_pytorch_tanh"},
    ),
    "window": ("mistral", {}, attribute(nn.Attention, window=4), {"sliding_window": 4}),
    "window of one layer": (
        "qwen3",
        {},
        attribute(nn.Attention, 1, window=4),
        {
            "sliding_window": 4,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "rope of one layer": ("smollm3", {}, partial(drop_rope, count=2), {"no_rope_layers": [0, 1]}),
    "biases": ("llama", {"attention_bias": True}, drop_bias, {"attention_bias": False}),
    "first layer": ("llama", {}, partial(drop_layer, number=0), {"num_hidden_layers": 1}),
    "second layer": (
        "smollm3",
        {},
        partial(drop_layer, number=1),
        {"num_hidden_layers": 1, "layer_types": ["full_attention"], "no_rope_layers": [1]},
    ),
    "theta": (
        "llama",
        {},
        theta(50000.0),
        {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}},
    ),
    "stretched positions": (
        "qwen2",
        {},
        partial(frequencies, change=lambda f: f / 4),
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "width": ("qwen3", {}, partial(prune_mlp, width=40), {"intermediate_size": 40}),
    "tied head": ("smollm3", {"tie_word_embeddings": True}, untie, {"tie_word_embeddings": False}),
}


@pytest.mark.parametrize("case", FOLLOWED)
def test_config_follows_the_graph(case: str, lifted: Lifted, tmp_path: Path) -> None:
    kind, changes, mutate, expected = FOLLOWED[case]
    source = lifted(kind, **changes)
    module = irlab.run(source, "fuse")
    mutate(module)
    before = irlab.evaluate(source, {"input_ids": [IDS]})["logits"][0]
    wanted = irlab.evaluate(module, {"input_ids": [IDS]})["logits"][0]
    assert case == "tied head" or not torch.allclose(before, wanted, atol=1e-3), "the mutation changes nothing"
    irlab.emit(module, "hf", tmp_path / "out", parity=False)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == {**source.metadata["config"], **expected}
    assert torch.allclose(hf_logits(tmp_path / "out", IDS), wanted, atol=1e-4)


REFUSED: dict[str, tuple[str, Mutation, str]] = {
    "eps of one norm": (
        "llama",
        attribute(nn.RMSNorm, 1, eps=0.5),
        "nn.rms_norm at model.layers.0.input_layernorm has eps=0.5; LlamaForCausalLM with this config.json has "
        "eps=1e-06 (the graph has several values of rms_norm_eps, a config.json holds one",
    ),
    "rope": (
        "llama",
        drop_rope,
        "nn.attention at model.layers.0.self_attn has q from prim.transpose; LlamaForCausalLM with this config.json "
        "has q from nn.rope",
    ),
    "rope of the keys": ("qwen2", lambda m: m.graph.replace(m.graph.find(nn.Rope)[1], m.graph.find(nn.Rope)[1].x), "k"),
    "activation of one layer": (
        "llama",
        attribute(nn.GatedMLP, 1, activation="relu"),
        "nn.gated_mlp at model.layers.0.mlp.down_proj has activation='relu'",
    ),
    "scale": (
        "qwen3",
        attribute(nn.Attention, scale=0.7),
        "nn.attention at model.layers.0.self_attn has scale=0.7; Qwen3ForCausalLM with this config.json has scale=0.25",
    ),
    "window": ("llama", attribute(nn.Attention, window=4), "has window=4; LlamaForCausalLM"),
    "softcap": ("llama", attribute(nn.Attention, softcap=30.0), "has softcap=30.0; LlamaForCausalLM"),
    "biases": (
        "qwen2",
        drop_bias,
        "nn.linear at model.layers.0.self_attn.q_proj has no bias; Qwen2ForCausalLM with this config.json has bias "
        "from a weight",
    ),
    "one bias": ("qwen2", partial(drop_bias, count=1), "q_proj has no bias"),
    "width of one layer": (
        "llama",
        partial(prune_mlp, width=40, count=1),
        "'model.layers.0.mlp.gate_proj.weight.cut': f32[40, 32]",
    ),
    "one frequency": (
        "llama",
        partial(frequencies, change=lambda f: f * torch.tensor([1.0, 1.0, 1.001, 1.0])),
        "at [2] of 'model.rotary_emb.inv_freq'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_config_says_is_refused(case: str, lifted: Lifted, tmp_path: Path) -> None:
    kind, mutate, words = REFUSED[case]
    module = irlab.run(lifted(kind), "fuse")
    mutate(module)
    with pytest.raises(LegalityError) as caught:
        irlab.emit(module, "hf", tmp_path / "out", parity=False)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["fuse-qkv", "fuse-gate-up"])
def test_concatenated_weights_are_refused(layout: str, lifted: Lifted) -> None:
    module = irlab.run(lifted("llama"), layout)
    with pytest.raises(LegalityError, match=r"model\.layers\.0"):
        prove(module)


@pytest.mark.parametrize(
    "pipeline", ["", "canonicalize,cse,dce", "kv-cache", "fuse-residual-norm", "fuse,constant-folding,kv-cache,cse"]
)
def test_passes_that_keep_the_numbers_change_nothing(pipeline: str, lifted: Lifted) -> None:
    module = lifted("qwen3")
    proof = prove(irlab.run(module, pipeline) if pipeline else module)
    assert proof.changed == {} and proof.config == module.metadata["config"]


def test_names_of_weights_do_not_matter(lifted: Lifted) -> None:
    """Weights are found by their place in the graph: a pass may rename them."""
    module = lifted("llama")
    names = {name for name in module.weights if "inv_freq" not in name}
    change_weights(module, "", lambda symbol: WeightSymbol(f"mine.{symbol.name}", symbol.recipe))
    tensors = prove(module).tensors
    assert tensors.keys() == names
    assert all(symbol.name == f"mine.{name}" for name, symbol in tensors.items())


def test_kept_layers_are_numbered_anew(lifted: Lifted) -> None:
    module = irlab.run(lifted("llama"), "fuse")
    drop_layer(module, 0)
    tensors = prove(module).tensors
    assert tensors["model.layers.0.mlp.up_proj.weight"].name == "model.layers.1.mlp.up_proj.weight"
    assert not any("layers.1" in name for name in tensors)


def test_proving_reads_no_weight(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoint("mistral") / "config.json").read_text())
    proof = prove(irlab.run(irlab.load(tmp_path), "quantize{scheme=int4}"))
    assert len(proof.tensors) == 21 and all(static_shape(symbol.type) for symbol in proof.tensors.values())


def test_the_plan_says_how_it_is_held(lifted: Lifted) -> None:
    module = irlab.run(lifted("llama"), "fuse,quantize{scheme=int4}")
    attribute(nn.RMSNorm, eps=0.5)(module)
    rows = {row.what: row for row in irlab.api.make_backend("hf", {}).plan(module)}
    assert rows["the graph"].holding == "native"
    assert rows["rms_norm_eps = 0.5"].holding == "native"
    assert rows["15 weights in q<int4, sym, group=32, scale=f16>"].holding == "emulated"
    drop_rope(module)
    (refused,) = [row for row in irlab.api.make_backend("hf", {}).plan(module) if row.holding == "none"]
    assert "nn.rope" in refused.note


def test_a_module_without_a_config_is_refused() -> None:
    b = GraphBuilder()
    b.output(y=prim.neg(b.input("x", "f32", (4,))))
    with pytest.raises(LegalityError, match="no Hugging Face config"):
        prove(b.module())


def test_a_config_that_describes_no_model_is_refused(lifted: Lifted) -> None:
    module = lifted("llama")
    module.metadata["config"]["num_attention_heads"] = "many"
    with pytest.raises(LegalityError, match="transformers builds no model"):
        prove(module)


def pruned(**widths: Any) -> Module:
    """A pruned Llama of 64 features, as irlab would have lifted it."""
    module = Llama(gain=1.0, **widths).module()
    module.metadata["config"] |= {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 50,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "rms_norm_eps": 1e-5,
        "bos_token_id": 2,
        "pad_token_id": 0,
    }
    return module


def test_layers_that_are_pruned_alike_stay_a_llama(tmp_path: Path) -> None:
    emitted = irlab.emit(pruned(heads=2, kv_heads=1, ffn=40), "hf", tmp_path / "out", parity=True)
    assert emitted.parity.max_abs_logit_diff < 1e-4 and emitted.parity.greedy_equal
    config = json.loads((tmp_path / "out/config.json").read_text())
    widths = [config[f] for f in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "head_dim")]
    assert config["model_type"] == "llama" and widths == [2, 1, 40, 16]


def test_heads_that_do_not_divide_the_hidden_size_make_a_mistral(tmp_path: Path) -> None:
    """transformers refuses a Llama with 3 heads and 64 features; its Mistral computes the same."""
    module = pruned(heads=3, kv_heads=1)
    emitted = irlab.emit(module, "hf", tmp_path / "out", parity=True)
    assert emitted.parity.max_abs_logit_diff < 1e-4 and emitted.parity.greedy_equal
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["MistralForCausalLM"]
    (row,) = [row for row in irlab.api.make_backend("hf", {}).plan(module) if "model_type" in row.what]
    assert row.holding == "special" and "MistralForCausalLM" in row.note
    with pytest.raises(LegalityError, match="heads"):
        prove(pruned(heads=3, kv_heads=1, bias=True))


def test_layers_that_differ_are_refused_with_a_way_out() -> None:
    with pytest.raises(LegalityError, match=r"layers\.1.*several values of intermediate_size.*one width"):
        prove(pruned(ffn=(96, 64)))
    with pytest.raises(LegalityError, match=r"several values of num_attention_heads and num_key_value_heads"):
        prove(pruned(heads=(4, 2), kv_heads=(2, 1)))
