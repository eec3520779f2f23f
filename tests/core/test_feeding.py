"""How a decoder is fed: what sizes are fixed to changes nothing in what it says."""

from __future__ import annotations

import numpy as np
import pytest

import irlab
from irlab.decoder import greedy, logits
from irlab.feeding import Cache

PROMPT = [5, 9, 2, 30, 11, 7, 100, 3, 8]


@pytest.mark.parametrize("recipe", ["fuse,kv-cache", "fuse"])
def test_fixed_sizes_change_nothing(recipe: str) -> None:
    module = irlab.run(irlab.load("demo"), f"cast{{dtype=f32}},{recipe}")
    for sizes in ("batch:1,seq:4,past:24", "batch:2,seq:1,past:24") if "kv" in recipe else ("batch:2,seq:16",):
        fixed = irlab.run(module.clone(), f"specialize{{sizes={sizes}}}")
        np.testing.assert_allclose(logits(fixed, PROMPT), logits(module, PROMPT), atol=1e-4)
        assert greedy(fixed, PROMPT, 6) == greedy(module, PROMPT, 6)


def test_a_cache_forgets_padding_first_and_then_what_is_oldest() -> None:
    cache = Cache({"k": np.zeros((1, 1, 3, 1))}, np.zeros(3, np.int64))
    cache.append({"k": np.array([0, 0, 0, -1, -1, 1, 2]).reshape(1, 1, 7, 1)}, padding=2, tokens=2, slots=3)
    assert cache.values["k"].ravel().tolist() == [0, 1, 2] and cache.mask.tolist() == [0, 1, 1] and cache.seen == 2
    cache.append({"k": np.array([0, 1, 2, 3, 4]).reshape(1, 1, 5, 1)}, padding=0, tokens=2, slots=3)
    assert cache.values["k"].ravel().tolist() == [2, 3, 4] and cache.mask.tolist() == [1, 1, 1] and cache.seen == 4
