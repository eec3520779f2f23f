"""Each distinct kind of layer is traced once, and a layer that computes with its own number is never stamped."""

from __future__ import annotations

import json

import pytest
import torch
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama
from transformers.models.smollm3 import modeling_smollm3

from irlab.frontends.hf import lift_directory
from irlab.frontends.hf.attention import Visibility, visibility
from irlab.ops import nn, prim

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}


@pytest.fixture
def traced_layers(monkeypatch):
    """How often an MLP was traced, by class name."""
    counts = {}
    for cls in (modeling_llama.LlamaMLP, modeling_smollm3.SmolLM3MLP, modeling_gpt2.GPT2MLP):

        def forward(self, x, _forward=cls.forward):
            counts[type(self).__name__] = counts.get(type(self).__name__, 0) + 1
            return _forward(self, x)

        monkeypatch.setattr(cls, "forward", forward)
    return counts


def lift(directory, **config):
    (directory / "config.json").write_text(json.dumps(config))
    return lift_directory(directory)


def test_equal_layers_are_traced_once(tmp_path, traced_layers):
    module = lift(tmp_path, model_type="llama", **SMALL)
    assert traced_layers == {"LlamaMLP": 1}
    assert len(module.graph.find(nn.Attention)) == 12
    assert {f"model.layers.{i}.mlp.up_proj.weight" for i in range(12)} <= set(module.weights)
    places = {op.loc.path for op in module.graph.find(nn.Attention) if op.loc}
    assert places == {f"model.layers.{i}.self_attn" for i in range(12)}


def test_each_kind_is_traced_once(tmp_path, traced_layers):
    module = lift(tmp_path, model_type="smollm3", no_rope_layer_interval=4, **SMALL)
    assert traced_layers == {"SmolLM3MLP": 2}
    assert len(module.graph.find(prim.Neg)) == 2 * 9  # three of twelve layers have no rotary embedding


def test_a_layer_that_computes_with_its_number_is_traced(tmp_path, traced_layers):
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 5, "vocab_size": 64}
    plain = lift(tmp_path, model_type="gpt2", **sizes)
    assert traced_layers.pop("GPT2MLP") == 1
    assert {op.scale for op in plain.graph.find(nn.Attention)} == {0.25}
    scaled = lift(tmp_path, model_type="gpt2", scale_attn_by_inverse_layer_idx=True, **sizes)
    assert traced_layers.pop("GPT2MLP") >= 5
    found = sorted(op.scale for op in scaled.graph.find(nn.Attention))
    assert found == pytest.approx(sorted(0.25 / (i + 1) for i in range(5)))


def test_what_a_mask_function_shows_is_found_by_asking_it():
    from transformers import masking_utils as masks

    assert visibility(masks.causal_mask_function) == Visibility(causal=True)
    assert visibility(masks.bidirectional_mask_function) == Visibility(causal=False)
    for window in (1, 2, 3, 7, 4096):
        assert visibility(masks.sliding_window_causal_mask_function(window)) == Visibility(True, window)
    chunks = masks.chunked_causal_mask_function(8, torch.zeros(1, dtype=int))
    assert visibility(chunks) is None
    assert visibility(masks.sliding_window_bidirectional_mask_function(8)) is None
    padded = masks.and_masks(masks.causal_mask_function, masks.padding_mask_function(torch.ones(1, 8, dtype=bool)))
    assert visibility(padded) is None
