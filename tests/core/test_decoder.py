"""Cached decoders: inputs are filled in, and generation with a cache gives what generation without one gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from irlab import Context, dims
from irlab.decoder import cache_inputs, decode, greedy, logits, with_defaults
from irlab.errors import InputError
from irlab.interp import evaluate
from irlab.ir import GraphBuilder, Module
from irlab.ops import nn, prim
from irlab.passes.kv_cache import KVCache
from irlab.types import i64

HIDDEN, HEADS, KV_HEADS, WIDTH, VOCAB = 32, 4, 2, 8, 50


def decoder(layers: int = 2) -> Module:
    """A small decoder with sharp logits, so that the likeliest token is clear."""
    b = GraphBuilder("decoder")
    ids = b.input("input_ids", "i64", ("batch", "seq"))
    batch, seq = ids.type.shape
    positions = prim.iota(seq, i64)
    inv_freq = prim.weight(_inv_freq())
    h = nn.embedding(ids, b.random_weight("embed", "f32", (VOCAB, HIDDEN), seed=1))
    for layer in range(layers):
        n = nn.rms_norm(h)

        def heads(name: str, count: int, x=n, layer=layer):  # type: ignore[no-untyped-def]
            w = b.random_weight(f"{layer}.{name}", "f32", (count * WIDTH, HIDDEN), seed=hash_of(name, layer))
            split = prim.reshape(nn.linear(x, w), (batch, seq, count, WIDTH))
            return prim.transpose(split, (0, 2, 1, 3))

        q, k = (nn.rope(heads(name, c), positions, inv_freq) for name, c in (("q", HEADS), ("k", KV_HEADS)))
        attended = nn.attention(q, k, heads("v", KV_HEADS), scale=40.0)
        joined = prim.reshape(prim.transpose(attended, (0, 2, 1, 3)), (batch, seq, HEADS * WIDTH))
        h = prim.add(h, joined)
    head = b.random_weight("head", "f32", (VOCAB, HIDDEN), seed=99)
    b.output(logits=nn.linear(nn.rms_norm(h), head))
    return b.module()


def hash_of(name: str, layer: int) -> int:
    return sum(map(ord, name)) * 7 + layer


def _inv_freq():  # type: ignore[no-untyped-def]
    from irlab.types import f32, tensor
    from irlab.weights import Literal, WeightSymbol

    return WeightSymbol("inv_freq", Literal(tensor(f32, (WIDTH // 2,)), (1.0, 0.1, 0.01, 0.001)))


@pytest.fixture(scope="module")
def plain() -> Module:
    return decoder()


@pytest.fixture(scope="module")
def cached(plain: Module) -> Module:
    module = plain.clone()
    KVCache().run(module, Context())
    return module


def test_a_cached_decoder_runs_on_token_ids_alone(plain: Module, cached: Module) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    ours, theirs = evaluate(cached, {"input_ids": ids}), evaluate(plain, {"input_ids": ids})
    torch.testing.assert_close(ours["logits"], theirs["logits"])
    assert ours["present.1.key"].shape == (2, KV_HEADS, 5, WIDTH)


def test_a_sequence_in_two_pieces_gives_what_it_gives_in_one(plain: Module, cached: Module) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    whole = evaluate(plain, {"input_ids": ids})["logits"]
    first = evaluate(cached, {"input_ids": ids[:, :4]})
    past = {name.replace("present", "past_key_values"): t for name, t in first.items() if name != "logits"}
    second = evaluate(cached, {"input_ids": ids[:, 4:], **past})
    torch.testing.assert_close(torch.cat((first["logits"], second["logits"]), 1), whole)


def test_padding_that_the_mask_hides_does_not_matter(plain: Module, cached: Module) -> None:
    ids = torch.tensor([[7, 7, 3, 1, 4]])
    masked = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1]]),
        "position_ids": torch.tensor([[0, 0, 0, 1, 2]]),
    }
    ours = evaluate(cached, masked)["logits"][:, 2:]
    torch.testing.assert_close(ours, evaluate(plain, {"input_ids": ids[:, 2:]})["logits"])


def test_greedy_tokens_are_the_same_with_and_without_a_cache(plain: Module, cached: Module) -> None:
    prompt = [3, 1, 4]
    chosen = greedy(cached, prompt, 12)
    assert chosen == greedy(plain, prompt, 12)
    assert len(set(chosen)) > 1 and len(chosen) == 12
    assert logits(plain, [*prompt, *chosen])[2:-1].argmax(-1).tolist() == chosen
    assert greedy(plain, prompt, 0) == []


def test_decode_gives_the_logits_of_tokens_that_are_sent_in(plain: Module, cached: Module) -> None:
    for module in (plain, cached):
        steps = decode(module, [3, 1])
        found = [next(steps), steps.send(8), steps.send(40)]
        np.testing.assert_allclose(torch.stack(found).numpy(), logits(plain, [3, 1, 8, 40])[1:], rtol=1e-4, atol=1e-5)


def test_other_inputs_stay_missing(cached: Module) -> None:
    b = GraphBuilder()
    b.output(y=b.input("x", "f32", (2,)))
    assert with_defaults(b.module().graph, {}) == {}
    with pytest.raises(InputError, match="input 'input_ids' is missing"):
        evaluate(cached, {})


def test_a_cache_input_without_its_output_is_refused(cached: Module) -> None:
    module = cached.clone()
    outputs = dict(module.graph.outputs)
    del outputs["present.0.value"]
    module.graph.set_outputs(outputs)
    with pytest.raises(InputError, match=r"past_key_values\.0\.value"):
        cache_inputs(module.graph)
    assert set(cache_inputs(cached.graph)) == {f"past_key_values.{n}.{p}" for n in (0, 1) for p in ("key", "value")}
    assert dims.symbol("past") in cached.graph.inputs[-1].type.shape
