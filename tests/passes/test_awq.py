"""quantize{method=awq}: scales fold in without changing the model, through GQA and norms, and pay; and method=hqq."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

import irlab
from irlab import Context, Module
from irlab.calibration import Sample
from irlab.encodings import IntegerEncoding
from irlab.floats import as_f32
from irlab.layers import layers
from irlab.passes.quantize.folds import folds
from irlab.passmgr import PassManager, PassRecord
from irlab.quality import quality
from irlab.schedule import build_pipeline
from irlab.types import f16, f32, tensor
from irlab.weight_uses import replace_weights
from irlab.weights import Array, Encode, Random, WeightSymbol


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 96, (8, 32))


@pytest.fixture(scope="module", params=["llama", "llama-biased", "qwen2"])
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Module:
    directory = tiny_model(tmp_path_factory.mktemp("tiny"), request.param)
    return irlab.run(irlab.load(directory), "fuse")


def run(module: Module, pipeline: str, ids: np.ndarray, cache: Path) -> tuple[Module, PassRecord]:
    new = module.clone()
    manager = PassManager(build_pipeline(pipeline), Context(calibration=Sample(ids, length=32), cache_dir=cache))
    return new, manager.run(new)[-1]


def test_any_scales_fold_in_without_a_change(module: Module, ids: np.ndarray) -> None:
    new = module.clone()
    random = np.random.default_rng(1)
    found = [fold for layer in layers(new.graph) for fold in folds(layer)]
    assert len(found) >= 3 * 4  # two norms, v -> o and up -> down in each of three layers
    for fold in found:
        scales = random.uniform(0.3, 3, int(fold.channels.max()) + 1).astype(np.float32)
        weights = new.weights
        changed = {}
        for name in fold.sources:
            values = as_f32(weights[name].recipe.read())
            changed[name] = values / (scales if values.ndim == 1 else scales[:, None])
        for name in fold.matrices:
            changed[name] = as_f32(weights[name].recipe.read()) * scales[fold.channels]
        replace_weights(
            new.graph, {name: WeightSymbol(name, Array(weights[name].type, v)) for name, v in changed.items()}
        )
    before, after = (irlab.evaluate(m, {"input_ids": ids})["logits"] for m in (module, new))
    torch.testing.assert_close(after, before, rtol=2e-3, atol=2e-3)


def test_value_heads_are_shared_by_query_heads(module: Module) -> None:
    found = [fold for fold in folds(layers(module.graph)[1]) if "o_proj" in fold.matrices[0]]
    (fold,) = found
    # 4 query heads of width 16 read 2 value heads: heads 0 and 1 the first, 2 and 3 the second.
    assert fold.channels.reshape(4, 16)[:, 0].tolist() == [0, 0, 16, 16]


def test_at_eight_bits_the_model_stays(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new, record = run(module, "quantize{method=awq scheme=int8}", ids, tmp_path)
    assert [n for n in record.layers if "layernorm" in n]  # norms took scales
    found = quality(new, [{"input_ids": ids}], Context(), module)
    assert found.kl is not None and found.kl < 2e-3
    assert all(e["output_error"] < 0.02 for n, e in record.layers.items() if "output_error" in e)


@pytest.mark.parametrize("method", ["awq", "awq-gptq"])
def test_it_loses_less_than_rounding(module: Module, ids: np.ndarray, tmp_path: Path, method: str) -> None:
    batches = [{"input_ids": ids}]
    rounded = quality(irlab.run(module, "quantize{scheme=int3}"), batches, Context(), module).kl
    found = quality(
        run(module, f"quantize{{method={method} scheme=int3}}", ids, tmp_path)[0], batches, Context(), module
    ).kl
    assert rounded is not None and found is not None and found < rounded


@pytest.mark.parametrize("symmetric", [True, False])
def test_hqq_lowers_the_sum_of_roots_of_errors(symmetric: bool) -> None:
    source = Random(tensor(f32, (32, 64)), 3)
    values = source.read()
    encoding = IntegerEncoding(4, symmetric, 32, f16)
    plain, robust = (np.abs(Encode(source, encoding, norm).read() - values) ** 0.7 for norm in (2.0, 0.7))
    assert (robust.sum(1) <= plain.sum(1) + 1e-6).all() and robust.sum() < plain.sum()
    whole = Encode(source, encoding, 0.7)
    assert np.array_equal(whole.rows(5, 9), whole.read()[5:9])


def test_hqq_is_lazy_and_survives_text() -> None:
    new = irlab.run(irlab.run(irlab.load("demo"), "fuse"), "quantize{method=hqq}")
    recipe = irlab.parse(str(new)).weights["model.layers.0.mlp.up_proj.weight"].recipe
    assert isinstance(recipe, Encode) and recipe.norm == 0.7
