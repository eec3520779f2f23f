"""Mixtures of experts as Hugging Face directories: a tensor for each matrix of each expert, as transformers saves."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import MIXTURES, tiny_model

import irlab
from irlab.checkpoint import find_checkpoint
from irlab.errors import LegalityError
from irlab.ops import nn


@pytest.mark.parametrize("kind", MIXTURES)
def test_what_is_written_is_what_transformers_saves(kind: str, tmp_path: Path) -> None:
    module = irlab.run(irlab.load(tiny_model(tmp_path / "model", kind)), "fuse")
    emitted = irlab.emit(module, "hf", tmp_path / "out", parity=True)
    assert not emitted.parity.failure and emitted.parity.max_abs_logit_diff < 1e-4
    saved, written = find_checkpoint(tmp_path / "model"), find_checkpoint(tmp_path / "out")
    assert saved is not None and written is not None and set(saved) == set(written)
    assert all((saved.weight(name).read() == written.weight(name).read()).all() for name in saved)


def test_another_number_of_experts_to_a_token_is_refused(tmp_path: Path) -> None:
    module = irlab.run(irlab.load(tiny_model(tmp_path / "model", "mixtral")), "fuse")
    op = module.graph.find(nn.MoE)[0]
    module.graph.replace(op, op.rebuild(op.operands, top_k=1).result)
    with pytest.raises(LegalityError, match="k=1"):
        irlab.emit(module, "hf", tmp_path / "out")


def test_layouts_of_quantised_checkpoints_are_refused(tmp_path: Path) -> None:
    module = irlab.run(irlab.load(tiny_model(tmp_path / "model", "mixtral")), "fuse,quantize{exclude=*experts*}")
    with pytest.raises(LegalityError, match="gptq layout is written for linear layers, and the model has mixtures"):
        irlab.emit(module, "hf", tmp_path / "out", layout="gptq")
