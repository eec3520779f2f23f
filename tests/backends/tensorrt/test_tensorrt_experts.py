"""Mixtures of experts in TensorRT: as its MoE layer where the builder makes one, else with every expert computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mixtures import VOCAB, mixture
from trt_networks import check, evaluated, legal, network_of

import irlab
from irlab.backends.tensorrt import legalise as legalisation
from irlab.backends.tensorrt.description import describe
from irlab.backends.tensorrt.legalise import EVERY_EXPERT
from irlab.backends.tensorrt.lowerings.experts import fits
from irlab.backends.tensorrt.probe import builds
from irlab.interp import evaluate
from irlab.ops import nn
from irlab.passmgr import Context
from irlab.types import f16, f32

pytest.importorskip("tensorrt_rtx")

TARGETS = ("sm80", "sm89", "sm120")
IDS = {"input_ids": np.arange(10).reshape(2, 5) % VOCAB}


@pytest.mark.parametrize("pipeline", ["", "quantize{group=32}", "quantize{scheme=int8 group=0}"])
def test_engines_of_a_mixture(pipeline: str, tmp_path: Path) -> None:
    module = irlab.run(mixture(), pipeline) if pipeline else mixture()
    check(module, IDS, 2e-3, tmp_path, TARGETS, precision="fp16" if pipeline else "auto")


def test_every_expert_is_said_to_be_computed() -> None:
    legalised = legal(mixture())
    assert EVERY_EXPERT in legalised.metadata["notes"]
    assert not legalised.graph.find(nn.Experts)


def test_the_builder_is_asked_whether_it_makes_the_layer(capfd: pytest.CaptureFixture[str]) -> None:
    """TensorRT-RTX 1.7 has the layer in its API and refuses to build it, for any capability and type."""
    assert [builds("moe", (target,), dtype) for target, dtype in (("sm80", f32), ("sm120", f16))] == [False, False]
    assert "Error" not in "".join(capfd.readouterr())


def test_a_builder_that_dies_makes_no_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irlab.backends.tensorrt.process.WORKER", "irlab.no_such_module")
    assert not builds("moe", ("sm86",), f32)


def test_the_moe_layer_computes_what_the_op_means() -> None:
    """The network that a builder with the layer would be given, evaluated."""
    module = legalisation.legalise(mixture(), "auto", Context(targets=("tensorrt",)), lambda module: True)
    assert all(fits(op) for op in module.graph.find(nn.Experts)) and len(module.graph.find(nn.Experts)) == 2
    network = network_of(module)
    assert describe(network)["layer_counts"]["MOE"] == 2
    found = evaluated(network, IDS)["logits"]
    np.testing.assert_allclose(found, evaluate(module, IDS)["logits"], atol=1e-4)
    network.close()


@pytest.mark.parametrize("change", ["activation", "encoded"])
def test_what_the_layer_cannot_say_is_spelled_out(change: str) -> None:
    module = mixture()
    if change == "encoded":
        module = irlab.run(module, "quantize{group=32}")
    else:
        for op in module.graph.find(nn.MoE):
            module.graph.replace(op, op.rebuild(op.operands, activation="gelu").result)
    legalised = legalisation.legalise(module, "auto", Context(targets=("tensorrt",)), lambda module: True)
    assert not legalised.graph.find(nn.Experts) and EVERY_EXPERT in legalised.metadata["notes"]
