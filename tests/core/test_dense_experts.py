"""Mixtures with every expert computed: the same numbers, as products that every runtime has."""

from __future__ import annotations

import numpy as np
import pytest
from mixtures import VOCAB, mixture

import irlab
from irlab.dense_experts import compute_every_expert
from irlab.ops import nn
from irlab.verify import verify
from irlab.weights import Encode

IDS = {"input_ids": np.arange(26).reshape(2, 13) % VOCAB}


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("pipeline", ["", "quantize{group=32}", "quantize{scheme=int8 group=0}", "cast{dtype=bf16}"])
def test_the_same_numbers(pipeline: str, normalise: bool) -> None:
    module = irlab.run(mixture(normalise=normalise), pipeline) if pipeline else mixture(normalise=normalise)
    wanted = irlab.evaluate(module, IDS)["logits"]
    assert compute_every_expert(module.graph, "test") == 2
    module.graph.erase_dead()
    verify(module)
    assert not module.graph.find(nn.MoE) and not module.graph.find(nn.Experts)
    found = irlab.evaluate(module, IDS)["logits"]
    size = wanted.abs().max().item()
    assert (found - wanted).abs().max().item() < size * (5e-2 if "bf16" in pipeline else 2e-5)


def test_codes_stay_the_same_codes() -> None:
    module = irlab.run(mixture(layers=1), "quantize{group=32}")
    before = module.weights["model.layers.0.mlp.experts.down_proj"].recipe
    assert isinstance(before, Encode)
    codes = before.codes(0, 4)
    compute_every_expert(module.graph, "test")
    one = module.graph.weights()["model.layers.0.mlp.experts.down_proj.2"].recipe
    for part, array in one.codes(0, one.row_count).items():
        np.testing.assert_array_equal(array, codes[part][2])


def test_an_expert_chosen_twice_counts_twice() -> None:
    b = irlab.GraphBuilder()
    x = b.input("x", "f32", (2, 8))
    chosen, shares = b.input("chosen", "i64", (2, 2)), b.input("scores", "f32", (2, 2))
    gate, up = (b.random_weight(name, "f32", (3, 4, 8), i) for i, name in enumerate(("gate", "up")))
    b.output(y=nn.experts(x, chosen, shares, gate, up, b.random_weight("down", "f32", (3, 8, 4), 2)))
    module = b.module()
    given = {
        "x": np.ones((2, 8), "f4") * 50,
        "chosen": np.array([[1, 1], [0, 2]]),
        "scores": np.array([[0.5, 0.25]] * 2, "f4"),
    }
    wanted = irlab.evaluate(module, given)["y"]
    compute_every_expert(module.graph, "test")
    np.testing.assert_allclose(irlab.evaluate(module, given)["y"], wanted, rtol=1e-4, atol=1e-7)


def test_what_is_held_stays() -> None:
    module = mixture()
    assert compute_every_expert(module.graph, "test", lambda op: isinstance(op, nn.MoE)) == 0
    assert len(module.graph.find(nn.MoE)) == 2
    assert compute_every_expert(module.graph, "test", lambda op: isinstance(op, nn.Experts)) == 0
    assert len(module.graph.find(nn.Experts)) == 2
