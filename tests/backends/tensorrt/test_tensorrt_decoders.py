"""Cached decoders: the network computes the interpreter's logits and caches, for prompts, continuations and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_llama import Llama
from trt_networks import check, evaluated, legal, network_of

from irlab.backends.tensorrt.description import describe
from irlab.backends.tensorrt.interface import Interface, decode
from irlab.decoder import logits
from irlab.interp import evaluate

VARIANTS: dict[str, Llama] = {
    "gqa": Llama(),
    "biases": Llama(bias=True, tied=True),
    "qk_norm": Llama(qk_norm=True, kv_heads=1),
    "window": Llama(window=3),
    "softcap": Llama(softcap=0.5, activation="gelu_tanh"),
    "no_rope": Llama(rope=False, kv_heads=4),
    "per_layer": Llama(heads=(4, 3), kv_heads=(2, 1), ffn=(96, 40)),
    "head_sizes": Llama(head_dim=(16, 32)),
    "no_attention_or_mlp": Llama(layers=3, heads=(4, 0, 2), kv_heads=(2, 0, 1), ffn=(96, 64, 0)),
}
TOLERANCE = {"fp32": 2e-5, "fp16": 1e-2, "bf16": 6e-2}


def steps(model: Llama, batch: int) -> list[dict[str, np.ndarray]]:
    """A prompt of five tokens, one token after it, then three at once."""
    rng, out, past = np.random.default_rng(1), [], 0
    for count in (5, 1, 3):
        positions = np.arange(past, past + count)[None].repeat(batch, 0)
        past += count
        ids = rng.integers(0, model.vocab, (batch, count))
        out.append({"input_ids": ids, "position_ids": positions, "attention_mask": np.ones((batch, past), np.int64)})
    return out


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    """Step by step with buffers of fixed length on one side and growing caches on the other."""
    model = VARIANTS[name]
    legalised = legal(model.module(), max_past=31, max_seq=16)
    network = network_of(legalised, max_past=31, max_seq=16)
    assert set(network.buffers.values()) == {f"present.{n}.{part}" for n in (0, 1) for part in ("key", "value")}
    buffers: dict[str, np.ndarray] = {}
    growing = {
        value.name: np.zeros((2, value.type.shape[1], 0, value.type.shape[3]), np.float32)
        for value in model.module().graph.inputs
        if value.name.startswith("past_key_values.")
    }
    for step in steps(model, 2):
        found = evaluated(network, step | buffers)
        expected = {name: t.numpy() for name, t in evaluate(legalised, step | growing).items()}
        np.testing.assert_allclose(found["logits"], expected["logits"], atol=2e-5)
        growing = {name: expected[output] for name, output in network.buffers.items()}
        buffers = {name: found[output] for name, output in network.buffers.items()}
        for cache, rows in growing.items():
            assert buffers[cache].shape[2] == 32
            np.testing.assert_allclose(buffers[cache][:, :, : rows.shape[2]], rows, atol=2e-5)
    network.close()


@pytest.mark.parametrize("precision", TOLERANCE)
def test_precisions_build(precision: str, tmp_path: Path) -> None:
    model = Llama(bias=True, qk_norm=True)
    targets = ("sm80", "sm89", "sm120")
    step = steps(model, 2)[0]
    check(model.module(), step, TOLERANCE[precision], tmp_path, targets, precision=precision, max_past=64)


def test_engines_are_built_where_layers_differ(tmp_path: Path) -> None:
    model = VARIANTS["per_layer"]
    check(model.module(), steps(model, 2)[0], TOLERANCE["fp16"], tmp_path, ("sm80",), precision="fp16", max_past=64)


def test_native_layers_are_used() -> None:
    network = network_of(legal(Llama().module(), precision="fp16"))
    counts = describe(network)["layer_counts"]
    assert counts["ATTENTION_OUTPUT"] == 2 and counts["ROTARY_EMBEDDING"] == 4 and counts["KV_CACHE_UPDATE"] == 4
    types = {
        t["type"] for row in describe(network)["layers"] if row["kind"] == "MATRIX_MULTIPLY" for t in row["outputs"]
    }
    assert types == {"half"}
    network.close()


def test_a_decoder_without_a_cache_has_one_profile() -> None:
    from irlab.backends.tensorrt.profiles import Limits, profiles

    module = Llama().module()
    assert [p.name for p in profiles(module.graph, Limits().resolved(128), True)] == ["prefill", "decode"]
    prefill, decode_one = profiles(module.graph, Limits(max_seq=8, max_past=20).resolved(128), True)
    mask = module.graph.inputs[1].type.shape
    assert prefill.shapes(mask) == ((1, 1), (1, 8), (4, 21))
    assert decode_one.shapes(mask) == ((1, 1), (1, 11), (4, 21))


def test_padding_first_gives_no_nan() -> None:
    """A query that sees nothing must not poison the cache that others read."""
    model = Llama(dtype="f16")
    legalised = legal(model.module(), max_past=31)
    network = network_of(legalised, max_past=31)
    prompt = steps(model, 2)[0]
    prompt["attention_mask"][1, :2] = 0
    prompt["position_ids"][1] = [0, 0, 0, 1, 2]
    found = evaluated(network, prompt)
    assert all(np.isfinite(value).all() for value in found.values())
    expected = evaluate(legalised, prompt)["logits"].float().numpy()
    np.testing.assert_allclose(found["logits"][1, 2:].astype(np.float32), expected[1, 2:], atol=0.02)
    network.close()


def test_the_session_stops_at_the_end_of_its_cache() -> None:
    from irlab.backends.tensorrt.evaluator.session import NetworkSession
    from irlab.errors import InputError

    legalised = legal(Llama().module(), max_past=7, max_seq=4)
    network = network_of(legalised, max_past=7, max_seq=4)
    session = NetworkSession(network)
    assert Interface.of(network).capacity == 8
    generator = decode(session, [3, 7, 9])
    np.testing.assert_allclose(next(generator), logits(legalised, [3, 7, 9])[-1], atol=2e-5)
    for token in range(5):
        last = generator.send(token)
    np.testing.assert_allclose(last, logits(legalised, [3, 7, 9, 0, 1, 2, 3, 4])[-1], atol=2e-5)
    with pytest.raises(InputError, match="the cache holds 8 positions"):
        generator.send(1)
    network.close()
