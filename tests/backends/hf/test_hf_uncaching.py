"""A cached decoder is turned back into the graph that it was made from, or refused."""

from __future__ import annotations

import pytest
import torch
from hf_models import Lifted

import irlab
from irlab import nn, prim
from irlab.backends.hf.bisimulation import compare
from irlab.backends.hf.uncaching import uncached
from irlab.errors import LegalityError

IDS = [5, 17, 3, 88, 41, 2, 63, 9, 30, 71]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_it_undoes_kv_cache(kind: str, lifted: Lifted) -> None:
    plain = irlab.run(lifted(kind), "fuse,canonicalize")
    cached = irlab.run(plain, "kv-cache")
    again = uncached(cached.graph)
    assert [value.name for value in again.inputs] == ["input_ids"] and list(again.outputs) == ["logits"]
    assert not again.find(nn.KVUpdate)
    assert compare(irlab.run(plain, "cse").graph, irlab.run(irlab.Module(again), "cse").graph).difference is None
    wanted = irlab.evaluate(cached, {"input_ids": [IDS]})["logits"]
    assert torch.allclose(irlab.evaluate(irlab.Module(again), {"input_ids": [IDS]})["logits"], wanted, atol=1e-5)


def test_a_graph_without_a_cache_stays_as_it_is(lifted: Lifted) -> None:
    graph = lifted("llama").graph
    assert uncached(graph) is graph


def test_another_use_of_the_mask_is_refused(lifted: Lifted) -> None:
    module = irlab.run(lifted("llama"), "kv-cache")
    (question,) = module.graph.find(prim.Ne)
    module.graph.replace(question, prim.eq(question.x, question.y))  # hides what should be seen
    with pytest.raises(LegalityError, match=r"prim\.eq at model\.layers\.0\.self_attn reads the cache"):
        uncached(module.graph)


def test_another_use_of_the_cache_is_refused(lifted: Lifted) -> None:
    module = irlab.run(lifted("llama"), "kv-cache")
    update = module.graph.find(nn.KVUpdate)[0]
    module.graph.set_operand(update, 0, prim.neg(update.cache))
    with pytest.raises(LegalityError, match=r"prim\.neg at .* reads the cache"):
        uncached(module.graph)
