"""What passes make of mixtures of experts: quantize encodes every expert, the others leave experts alone and say so."""

from __future__ import annotations

import numpy as np
import pytest
from mixtures import EXPERTS, VOCAB, mixture

import irlab
from irlab import Module
from irlab.errors import InputError
from irlab.weights import WeightSymbol

IDS = {"input_ids": np.arange(26).reshape(2, 13) % VOCAB}
SAMPLE = np.random.default_rng(0).integers(0, VOCAB, (8, 32))


def stacks(module: Module) -> dict[str, WeightSymbol]:
    return {name: symbol for name, symbol in module.weights.items() if ".experts." in name}


def logits(module: Module) -> np.ndarray:
    return irlab.evaluate(module, IDS)["logits"].float().numpy()


SCHEMES = ["int4 group=32", "int8 group=32 sym=false", "q4_0", "fp8", "codebook4", "nvfp4", "int4 method=hqq"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantize_encodes_each_expert_as_it_would_alone(scheme: str) -> None:
    module = irlab.run(mixture(), f"quantize{{scheme={scheme}}}")
    plain = mixture()
    for name, symbol in stacks(module).items():
        encoding = symbol.type.encoding
        assert encoding is not None and symbol.type.shape[0] == EXPERTS
        # What is known of a whole tensor (nvfp4) is that of all experts; hqq has another search.
        if not encoding.tensor_wide and "hqq" not in scheme:
            values = plain.weights[name].recipe.read()
            alone = [encoding.decode(encoding.encode(expert)) for expert in values]
            np.testing.assert_array_equal(symbol.recipe.read(), np.stack(alone))
    assert module.weights["model.layers.0.mlp.gate.weight"].type.encoding is None
    found, wanted = logits(module), logits(plain)
    assert np.isfinite(found).all() and not np.array_equal(found, wanted)


def test_calibrated_methods_round_experts_to_nearest() -> None:
    nearest = irlab.run(mixture(), "quantize{group=32}")
    compensated = irlab.run(mixture(), "quantize{group=32 method=gptq}", calibration=SAMPLE)
    for name, symbol in stacks(compensated).items():
        np.testing.assert_array_equal(symbol.recipe.read(), stacks(nearest)[name].recipe.read())
    head = "lm_head.weight"
    assert not np.array_equal(compensated.weights[head].recipe.read(), nearest.weights[head].recipe.read())


@pytest.mark.parametrize(
    "pipeline",
    [
        "low-rank{method=svd ratio=0.2 multiple=1}",
        "sparsify{method=magnitude}",
        "share-weights{method=k-means per=1row}",
        "quantize-activations",
        "dynamic-sparsity",
    ],
)
def test_others_leave_experts_alone_and_say_so(pipeline: str) -> None:
    before = mixture()
    after = irlab.run(before.clone(), pipeline, calibration=SAMPLE)
    assert {n: s.recipe for n, s in stacks(after).items()} == {n: s.recipe for n, s in stacks(before).items()}
    name = pipeline.partition("{")[0]
    assert any(text.startswith(f"{name} leaves the matrices of experts") for text in after.metadata["notes"])


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("rotate", "rotate: nn.moe at model.layers.0.mlp cannot follow a rotation of the features"),
        ("prune-hidden{ratio=0.5}", "prune-hidden: nn.moe at model.layers.0.mlp cannot follow"),
        ("prune-neurons{ratio=0.5 score=magnitude refit=false}", "prune-neurons: the graph has no neurons to prune"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(pipeline: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        irlab.run(mixture(), pipeline)
    assert message in refused.value.message and "\n" not in refused.value.message


def test_features_and_layers_may_go() -> None:
    for pipeline in ("prune-hidden{ratio=0.5 method=select multiple=1}", "drop-layers{indices=0}"):
        module = irlab.run(mixture(), pipeline)
        assert np.isfinite(logits(module)).all()
