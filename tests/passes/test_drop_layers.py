"""drop-layers: which layers go is measured, and the matrices before the gaps make up for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_model

import irlab
from irlab import Context, Module
from irlab.calibration import Sample
from irlab.errors import InputError, UsageError
from irlab.passes.prune.streams import streams
from irlab.passmgr import PassManager
from irlab.quality import quality
from irlab.schedule import build_pipeline
from irlab.verify import verify
from irlab.weight_uses import replace_weights
from irlab.weights import Affine, WeightSymbol


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 96, (16, 32))


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Module:
    """Five layers, of which the fourth does almost nothing."""
    directory = tiny_model(tmp_path_factory.mktemp("llama"), "llama", num_hidden_layers=5)
    module = irlab.run(irlab.load(str(directory)), "fuse")
    idle = [
        n
        for n in module.weights
        if n.startswith("model.layers.3.") and n.endswith(("o_proj.weight", "down_proj.weight"))
    ]
    replace_weights(module.graph, {n: WeightSymbol(n, Affine(module.weights[n].recipe, 0.01)) for n in idle})
    return module


def run(module: Module, pipeline: str, ids: np.ndarray, cache: Path) -> Module:
    new = module.clone()
    PassManager(build_pipeline(pipeline), Context(calibration=Sample(ids, length=32), cache_dir=cache)).run(new)
    verify(new)
    return new


def left(module: Module) -> list[int]:
    return [stream.number for stream in streams(module.graph)]


def loss(module: Module, original: Module, ids: np.ndarray) -> float:
    found = quality(module, Sample(ids, length=32).batches(module), Context(), original).kl
    assert found is not None
    return found


def test_layers_are_steps_of_a_stream(module: Module) -> None:
    assert left(module) == [0, 1, 2, 3, 4]


def test_the_layer_that_does_least_goes(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    assert left(run(module, "drop-layers{count=1 choose=influence}", ids, tmp_path)) == [0, 1, 2, 4]
    # By the loss it is tried, at least: the weights are random, so that others may even be harmful.
    assert len(left(run(module, "drop-layers{count=2}", ids, tmp_path))) == 3


def test_what_is_left_makes_up_for_it(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    fitted = run(module, "drop-layers{indices=2,3}", ids, tmp_path)
    plain = run(module, "drop-layers{indices=2,3 refit=false}", ids, tmp_path)
    assert left(fitted) == left(plain) == [0, 1, 4]
    assert loss(fitted, module, ids) < 0.9 * loss(plain, module, ids)
    changed = [n for n, s in fitted.weights.items() if s.recipe != module.weights[n].recipe]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]


def test_dropping_is_skipping(module: Module, ids: np.ndarray) -> None:
    new = irlab.run(module, "drop-layers{indices=0,4}")
    assert left(new) == [1, 2, 3]
    assert set(module.weights) - set(new.weights) == {
        n for n in module.weights if ".layers.0." in n or ".layers.4." in n
    }
    assert irlab.evaluate(new, {"input_ids": ids[:1]})["logits"].isfinite().all()


def test_what_is_refused(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibration data is needed"):
        irlab.run(module, "drop-layers{count=1}")
    with pytest.raises(InputError, match="there is no layer 9"):
        irlab.run(module, "drop-layers{indices=9}")
    with pytest.raises(InputError, match="5 of 5 layers would leave none"):
        run(module, "drop-layers{count=5}", ids, tmp_path)
    joined = irlab.run(module, "fuse-residual-norm")
    with pytest.raises(InputError, match=r"hands on several values|does not hand on"):
        irlab.run(joined, "drop-layers{indices=1}")
    for options in ("", "{count=-1}", "{count=1 indices=1}", "{indices=1,1}"):
        with pytest.raises(UsageError, match="drop-layers"):
            build_pipeline(f"drop-layers{options}")
