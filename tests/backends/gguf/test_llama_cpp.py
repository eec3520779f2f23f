"""The real llama.cpp behind a pipe: its numbers against numpy's, its refusals and its deaths."""

from __future__ import annotations

import os
import signal

import gguf
import numpy as np
import pytest

from irlab.backends.gguf import llama_cpp
from irlab.backends.gguf.ggml import ggml_type
from irlab.backends.gguf.library import llama_library
from irlab.backends.gguf.llama_cpp import LlamaCpp, LlamaCppError
from irlab.backends.gguf.writer import ShardsWriter, TensorInfo
from irlab.errors import InputError

needs_runtime = pytest.mark.skipif(llama_library() is None, reason="no wheel with llama.cpp is installed")


@pytest.fixture(scope="module")
def runtime():
    with LlamaCpp() as started:
        yield started


@pytest.fixture
def model(tiny_llama):
    return tiny_llama(hidden=64, ffn=96, layers=2, heads=4, kv_heads=2, vocab=300)


def forward(model, weights, tokens):
    """Logits f32[tokens, vocab] of a Llama with GGUF's order of rotary pairs (neighbours)."""
    head = model.hidden // model.heads
    angles = np.arange(len(tokens))[:, None] / 10000 ** (np.arange(0, head, 2) / head)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    mask = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)

    def norm(x, name):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-5) * weights[name]

    def project(x, layer, name):
        return x @ weights[f"blk.{layer}.{name}.weight"].T.astype(np.float64)

    def rotate(x):
        even, odd = x[..., ::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    def heads(x):
        return x.reshape(len(tokens), -1, head)

    x = weights["token_embd.weight"][tokens].astype(np.float64)
    for layer in range(model.layers):
        y = norm(x, f"blk.{layer}.attn_norm.weight")
        q, k, v = (heads(project(y, layer, name)) for name in ("attn_q", "attn_k", "attn_v"))
        k, v = (np.repeat(side, model.heads // model.kv_heads, 1) for side in (rotate(k), v))
        scores = np.einsum("qhd,khd->hqk", rotate(q), k) / np.sqrt(head) + mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        x = x + project(mixed.reshape(len(tokens), -1), layer, "attn_output")
        y = norm(x, f"blk.{layer}.ffn_norm.weight")
        gate = project(y, layer, "ffn_gate")
        x = x + project(gate / (1 + np.exp(-gate)) * project(y, layer, "ffn_up"), layer, "ffn_down")
    return norm(x, "output_norm.weight") @ weights["output.weight"].T


@needs_runtime
@pytest.mark.parametrize("length", [1, 7, 300], ids=["one token", "few", "more than a batch"])
def test_logits_equal_a_numpy_model(model, runtime, tmp_path, length):
    weights = model.write(tmp_path / "m.gguf")
    tokens = np.random.default_rng(1).integers(3, model.vocab, length)
    logits = runtime.logits(tmp_path / "m.gguf", tokens)
    assert logits.shape == (length, model.vocab) and logits.dtype == np.float32
    assert np.abs(logits - forward(model, weights, tokens)).max() < 1e-5


@needs_runtime
def test_greedy_tokens_are_the_argmax_of_the_logits(model, runtime, tmp_path):
    weights = model.write(tmp_path / "m.gguf")
    tokens = [1, 5, 9]
    out = runtime.greedy(tmp_path / "m.gguf", tokens, 6)
    for token in out:
        assert token == forward(model, weights, tokens)[-1].argmax()
        tokens.append(token)
    assert len(out) == 6


@needs_runtime
def test_a_file_rewritten_under_its_name_is_loaded_again(model, runtime, tmp_path):
    path = tmp_path / "m.gguf"
    model.write(path, seed=0)
    first = runtime.logits(path, [5])
    model.write(path, seed=1)
    assert np.abs(runtime.logits(path, [5]) - first).max() > 0.1


@needs_runtime
def test_shards_are_one_model(model, runtime, tmp_path):
    weights = model.write(tmp_path / "m.gguf")
    metadata = {}
    for key, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items():
        if not key.startswith("GGUF."):
            numbers = field.types[-1] != gguf.GGUFValueType.STRING
            kinds = field.parts[-1].dtype
            metadata[key] = np.array(field.contents(), kinds) if numbers else field.contents()
    infos = [TensorInfo(name, values.shape, ggml_type("F32")) for name, values in weights.items()]
    (tmp_path / "shards").mkdir()
    with ShardsWriter(tmp_path / "shards", "tiny", metadata, infos, split_bytes=100_000) as shards:
        for name, values in weights.items():
            shards.write(name, values)
    first = min((tmp_path / "shards").iterdir())
    assert len(list(first.parent.iterdir())) > 2
    assert np.array_equal(runtime.logits(first, [4, 5]), runtime.logits(tmp_path / "m.gguf", [4, 5]))


@needs_runtime
def test_tokens_go_there_and_back(model, runtime, tmp_path):
    model.write(tmp_path / "m.gguf")
    tokens = runtime.tokenize(tmp_path / "m.gguf", "the rose", add_special=True)
    assert tokens[0] == 1
    assert runtime.detokenize(tmp_path / "m.gguf", tokens).strip() == "the rose"


@needs_runtime
def test_speed_is_positive(model, runtime, tmp_path):
    model.write(tmp_path / "m.gguf")
    rates = runtime.speed(tmp_path / "m.gguf", prefill=8, decode=4, repeats=1)
    assert set(rates) == {"prefill", "decode"} and min(rates.values()) > 0


@needs_runtime
def test_refusals_carry_llama_cpps_words(model, runtime, tmp_path):
    model.write(tmp_path / "m.gguf")
    with pytest.raises(LlamaCppError, match="token 300 is outside the vocabulary of 300"):
        runtime.logits(tmp_path / "m.gguf", [300])
    with pytest.raises(LlamaCppError, match="at least one token"):
        runtime.logits(tmp_path / "m.gguf", [])
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(LlamaCppError, match=r"could not load the file.*magic"):
        runtime.logits(tmp_path / "text.gguf", [1])
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "short.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LlamaCppError, match="not within the file bounds"):
        runtime.logits(tmp_path / "short.gguf", [1])
    with pytest.raises(LlamaCppError, match=r"nowhere\.gguf: no such file"):
        runtime.logits(tmp_path / "nowhere.gguf", [1])


@needs_runtime
def test_the_death_of_the_child_is_an_exception_and_a_new_one_serves(runtime):
    runtime.version()
    os.kill(runtime._child.pid, signal.SIGABRT)
    with pytest.raises(LlamaCppError, match=r"llama\.cpp died of SIGABRT"):
        runtime.version()
    assert runtime.version()


@needs_runtime
def test_a_request_that_takes_too_long_is_ended():
    with LlamaCpp(timeout_seconds=0.2) as hasty:
        os.kill(hasty._running().pid, signal.SIGSTOP)
        with pytest.raises(LlamaCppError, match=r"did not answer within 0\.2 seconds"):
            hasty.version()


def test_without_a_runtime_the_package_is_named(monkeypatch):
    monkeypatch.setattr(llama_cpp, "llama_library", lambda: None)
    with pytest.raises(InputError, match="pip install xllamacpp"):
        LlamaCpp()
