"""sparsify: as many zeros as asked for, where they hurt least; what stays makes up for them, also when rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irlab import Context, Module
from irlab.cache import Shelf
from irlab.calibration import Sample
from irlab.encodings import CodebookEncoding, IntegerEncoding
from irlab.errors import InputError
from irlab.floats import as_f32
from irlab.original import Original
from irlab.passes.quantize.gptq import Compensation, compensated_codes
from irlab.passes.sparsify.solve import Pattern, refined, refit, sparse_gpt
from irlab.passmgr import PassManager, PassRecord
from irlab.quality import quality
from irlab.reconstruction import Problem
from irlab.schedule import build_pipeline
from irlab.types import f16, f32, tensor
from irlab.weight_uses import replace_weights
from irlab.weights import Array, WeightSymbol

PATTERNS = [Pattern(0.5), Pattern(0.7), Pattern(0.5, 2, 4), Pattern(0.5, 4, 8)]


def problem(rows: int = 24, columns: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A weight and the Hessian of correlated inputs."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, columns)) @ rng.standard_normal((columns, columns)) * rng.uniform(0.1, 3, columns)
    hessian = x.T @ x / 300
    return rng.standard_normal((rows, columns)).astype(np.float32), hessian + 0.01 * hessian.trace() / columns * np.eye(
        columns
    )


def loss(weight: np.ndarray, found: np.ndarray, hessian: np.ndarray) -> float:
    off = weight.astype(np.float64) - found
    return float(np.vdot(off @ hessian, off))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_each_step_loses_less_than_the_one_before(pattern: Pattern) -> None:
    weight, hessian = problem()
    wanda = pattern.largest(np.abs(weight) * np.sqrt(np.diagonal(hessian)).astype(np.float32), rows=True)
    scored = np.where(wanda, weight, 0)
    fitted = refit(weight, wanda, hessian.astype(np.float32), scored)
    swept = sparse_gpt(weight, Compensation.of(hessian, 0, act_order=False).factor, pattern)
    best = refined(weight, swept, hessian, pattern)
    losses = [loss(weight, found, hessian) for found in (scored, fitted, swept, best)]
    assert losses[1] < 0.8 * losses[0] and losses[2] < 0.9 * losses[0]
    assert losses[3] < 0.95 * min(losses[:3])
    for found in (fitted, swept, best):
        assert abs((found == 0).mean() - pattern.sparsity) < 0.01
        if pattern.keep_of:
            kept = np.count_nonzero(found.reshape(len(found), -1, pattern.keep_of), axis=-1)
            assert (kept == pattern.keep).all()


def test_refitting_solves_the_normal_equations() -> None:
    weight, hessian = problem()
    mask = np.abs(weight) > 0.7
    found = refit(weight, mask, hessian.astype(np.float32), np.where(mask, weight, 0), steps=60)
    for row in range(len(weight)):
        inside = mask[row]
        exact = np.linalg.solve(hessian[np.ix_(inside, inside)], hessian[inside] @ weight[row])
        np.testing.assert_allclose(found[row, inside], exact, rtol=2e-2, atol=2e-2)


def test_zeros_stay_zero_when_errors_of_rounding_are_made_up_for() -> None:
    weight, hessian = problem()
    sparse = refined(weight, weight * (np.abs(weight) > 0.7), hessian, Pattern(0.5))
    compensation = Compensation.of(hessian, 0.01, act_order=True)
    for encoding in (IntegerEncoding(4, True, 16, f16), IntegerEncoding(4, False, 16, f16), CodebookEncoding(4)):
        decoded = encoding.decode(compensated_codes(sparse, compensation, encoding))
        assert (decoded[sparse == 0] == 0).all(), encoding
        plain = encoding.decode(encoding.encode(sparse))
        assert loss(sparse, decoded, hessian) < loss(sparse, plain, hessian), encoding


# In a model


@pytest.fixture(scope="module")
def ids(module: Module) -> np.ndarray:
    from irlab.decoder import sample

    return np.concatenate(list(sample(module, 24, 64, seed=0)))


def run(module: Module, pipeline: str, ids: object, cache: Path) -> tuple[Module, list[PassRecord]]:
    new = module.clone()
    manager = PassManager(build_pipeline(pipeline), Context(calibration=Sample(ids, length=64), cache_dir=cache))
    return new, manager.run(new)


def divergence(module: Module, changed: Module, ids: np.ndarray) -> float:
    found = quality(changed, Sample(ids, length=64).batches(module), Context(), module).kl
    assert found is not None
    return found


def zeros(module: Module, name: str = "model.layers.1.mlp.up_proj.weight") -> float:
    return float((as_f32(module.weights[name].recipe.read()) == 0).mean())


def test_methods_in_order_of_what_they_know(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    train, held_out = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    lost = []
    for options in ("method=magnitude", "method=wanda refit=false", "method=wanda", "method=sparsegpt"):
        new, _ = run(module, f"sparsify{{{options}}}", train, tmp_path)
        assert abs(zeros(new) - 0.5) < 0.01
        assert zeros(new, "model.embed_tokens.weight") < 0.01
        lost.append(divergence(module, new, held_out))
    assert lost[3] < lost[2] < min(lost[:2])


def test_a_shared_sweep_beats_rounding_what_wanda_left(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    train, held_out = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    joint, records = run(module, "sparsify,quantize{method=gptq}", train, tmp_path)
    assert [record.name for record in records] == ["sweep", "sparsify", "quantize"]
    assert abs(zeros(joint) - 0.5) < 0.12  # a few more are rounded to zero
    apart, _ = run(module, "sparsify{method=wanda refit=false},quantize", train, tmp_path)
    assert divergence(module, joint, held_out) < 0.7 * divergence(module, apart, held_out)


@pytest.mark.parametrize("pipeline", ["sparsify", "sparsify{method=wanda},quantize{method=gptq}"])
def test_an_interrupted_run_goes_on_with_the_original_beside_it(
    module: Module, ids: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str
) -> None:
    """What the original model computes is not kept: it runs again through the layers that are done."""
    few, kept, skipped = ids[:384], tmp_path / "a", list[int]()
    put, skip = Shelf.put, Original.skip

    def put_two(shelf: Shelf, item: str, *rest: Any) -> None:
        if item == "layer-0003":
            raise KeyboardInterrupt
        put(shelf, item, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "put", put_two)
        with pytest.raises(KeyboardInterrupt):
            run(module, pipeline, few, kept)
    done = {file: file.stat().st_mtime_ns for file in kept.rglob("layer-*.safetensors")}
    assert len(done) == 3
    monkeypatch.setattr(Original, "skip", lambda self, index: skipped.append(index) or skip(self, index))
    resumed, records = run(module, pipeline, few, kept)
    assert skipped == [0, 1, 2]
    assert {file: file.stat().st_mtime_ns for file in done} == done
    whole, fresh = run(module, pipeline, few, tmp_path / "b")
    assert skipped == [0, 1, 2]
    for name, symbol in whole.weights.items():
        assert np.array_equal(symbol.recipe.read(), resumed.weights[name].recipe.read()), name
    assert [record.layers for record in records] == [record.layers for record in fresh]


def test_what_stays_makes_up_for_the_layers_before() -> None:
    """With inputs that were changed the fitted weights are not those of the weight alone."""
    rng = np.random.default_rng(0)
    x0 = rng.standard_normal((500, 16))
    x = x0 * rng.uniform(0.5, 2, 16)  # each channel off by a factor: what was lost can be made up for exactly

    hessian, cross = x.T @ x / 500, x0.T @ x / 500
    weight = rng.standard_normal((8, 16)).astype(np.float32)
    target = Problem(hessian, np.linalg.solve(hessian, cross.T).T).target(weight)
    np.testing.assert_allclose(x @ target.T, x0 @ weight.T, atol=1e-4)


def test_layers_may_differ_and_names_be_excluded(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    text = 'sparsify{method=wanda exclude=*down_proj*}@"model.layers.1"{sparsity=0.25}'
    new, (record,) = run(module, text, ids, tmp_path)
    assert abs(zeros(new) - 0.25) < 0.01
    assert abs(zeros(new, "model.layers.0.mlp.up_proj.weight") - 0.5) < 0.01
    assert zeros(new, "model.layers.0.mlp.down_proj.weight") < 0.01
    assert "model.layers.0.mlp.up_proj.weight" in record.layers
    assert any("no smaller" in note for note in new.metadata["notes"])


def test_numbers_that_are_none_are_refused(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    values = np.array(module.weights[name].recipe.read())
    values[3, 5] = np.nan
    broken = module.clone()
    replace_weights(broken.graph, {name: WeightSymbol(name, Array(tensor(f32, values.shape), values))})
    with pytest.raises(InputError, match="NaN"):
        run(broken, "sparsify", ids, tmp_path)
