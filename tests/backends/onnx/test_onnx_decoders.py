"""Cached decoders, written in both profiles, give the interpreter's logits and caches: prompt, continuation, batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx_files import op_types, run_directory, write
from small_llama import Llama

import irlab
from irlab.backends.onnx import ONNX, genai
from irlab.errors import LegalityError
from irlab.interp import evaluate
from irlab.ir import Module
from irlab.passmgr import Context

VARIANTS: dict[str, Llama] = {
    "gqa": Llama(),
    "biases": Llama(bias=True, tied=True),
    "qk_norm": Llama(qk_norm=True, kv_heads=1),
    "qk_norm_last": Llama(qk_norm=True, norm_last=True),
    "small_heads": Llama(head_dim=8),
    "window": Llama(window=3),
    "softcap": Llama(softcap=0.5, activation="gelu_tanh"),
    "no_rope": Llama(rope=False, kv_heads=4),
    "per_layer": Llama(layers=3, heads=(4, 3, 2), kv_heads=(2, 1, 2), ffn=(96, 64, 33)),
    "per_layer_normed": Llama(layers=2, heads=(4, 3), kv_heads=(2, 1), ffn=(64, 40), qk_norm=True, tied=True),
    "head_sizes": Llama(layers=2, head_dim=(16, 32)),
    "no_attention_or_mlp": Llama(layers=3, heads=(4, 0, 2), kv_heads=(2, 0, 1), ffn=(96, 64, 0)),
}


def steps(model: Llama, batch: int) -> list[dict[str, np.ndarray]]:
    """A prompt of five tokens, one token after it, then three at once; caches are filled in by `run`."""
    rng = np.random.default_rng(1)
    out, past = [], 0
    for count in (5, 1, 3):
        ids = rng.integers(0, model.vocab, (batch, count))
        positions = np.arange(past, past + count)[None].repeat(batch, 0)
        past += count
        mask = np.ones((batch, past), np.int64)
        out.append({"input_ids": ids, "position_ids": positions, "attention_mask": mask})
    return out


def check(model: Llama, module: Module, legal: Module, directory: Path, batch: int, tolerance: float) -> None:
    cache = {
        value.name: np.zeros((batch, value.type.shape[1], 0, value.type.shape[3]), np.float32)
        for value in module.graph.inputs
        if value.name.startswith("past_key_values.")
    }
    for step in steps(model, batch)[: 3 if batch == 1 else 2]:
        inputs = {**step, **cache}
        expected = evaluate(module, inputs)
        meaning = evaluate(legal, inputs)
        found = run_directory(directory, inputs)
        for name, tensor in expected.items():
            wanted = tensor.numpy()
            np.testing.assert_allclose(meaning[name].numpy(), wanted, atol=tolerance, err_msg=f"meaning of {name}")
            np.testing.assert_allclose(found[name], wanted, atol=tolerance, err_msg=name)
        cache = {name: found[name.replace("past_key_values", "present")] for name in cache}


@pytest.mark.parametrize("profile", ["portable", "fast"])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, profile: str, tmp_path: Path) -> None:
    model = VARIANTS[name]
    module = model.module()
    legal = write(module, tmp_path / "out", profile=profile)
    for batch in (1, 2):
        check(model, module, legal, tmp_path / "out", batch, 2e-5)
    if profile == "fast":
        assert ("GroupQueryAttention" in op_types(tmp_path / "out")) == (name != "small_heads")


def test_a_cache_in_half_precision(tmp_path: Path) -> None:
    model = Llama(dtype="f16")
    module = model.module()
    legal = write(module, tmp_path / "out")
    inputs = steps(model, 1)[0] | {
        f"past_key_values.{n}.{part}": np.zeros((1, model.kv_heads, 0, model.head_dim), np.float16)
        for n in range(model.layers)
        for part in ("key", "value")
    }
    found, expected = run_directory(tmp_path / "out", inputs)["logits"], evaluate(legal, inputs)["logits"].numpy()
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=0.02)


def test_padding_last(tmp_path: Path) -> None:
    """A row that ends in padding gives, up to there, what it gives alone."""
    model = Llama()
    module = model.module()
    prompt = steps(model, 2)[0]
    prompt["attention_mask"][1, 3:] = 0
    empty = {
        f"past_key_values.{n}.{part}": np.zeros((2, 2, 0, 16), np.float32) for n in (0, 1) for part in ("key", "value")
    }
    alone = {name: value[1:, :3] for name, value in prompt.items()}
    for profile in ("fast", "portable"):
        write(module, tmp_path / profile, profile=profile)
        both = run_directory(tmp_path / profile, prompt | empty)["logits"]
        one = run_directory(tmp_path / profile, alone | {name: value[1:] for name, value in empty.items()})["logits"]
        np.testing.assert_allclose(both[1:, :3], one, atol=2e-5)


@pytest.mark.parametrize("profile", ["portable", "fast"])
@pytest.mark.parametrize("name", ["per_layer", "head_sizes", "no_attention_or_mlp"])
def test_genai_generates_with_caches_of_different_shapes(name: str, profile: str, tmp_path: Path) -> None:
    module = VARIANTS[name].module()
    emitted = irlab.emit(module, "onnx", tmp_path / "out", parity=True, layout="genai", profile=profile)
    assert emitted.parity.max_abs_logit_diff < 2e-5 and emitted.parity.greedy_equal
    assert [note for note in emitted.notes if "caches of different shapes" in note]
    model = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["decoder"]
    assert model["num_key_value_heads"] == 2 and model["num_attention_heads"] == 4
    assert model["num_hidden_layers"] == len(genai.cache_shapes(module.graph)) // 2


def test_the_plan_says_that_caches_differ() -> None:
    rows = {row.what: row.note for row in ONNX().plan(VARIANTS["per_layer"].module())}
    assert "onnxruntime-genai reads them off the model" in rows["genai_config.json"]
    assert "genai_config.json" not in {row.what for row in ONNX().plan(VARIANTS["gqa"].module())}


def test_genai_refuses_caches_with_a_gap(tmp_path: Path) -> None:
    text = str(Llama(layers=3).module()).replace("past_key_values.1.", "past_key_values.7.")
    module = irlab.parse(text)
    with pytest.raises(LegalityError, match=r"counts caches from 0, and past_key_values\.1\.key does not fit in"):
        ONNX(layout="genai").legalise(module.clone(), Context())
