"""share-weights: tables for a few rows, stored once, in files and runtimes; better where data says what matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import irlab
from irlab import Context, Module
from irlab.calibration import Sample
from irlab.encodings import CodebookEncoding
from irlab.errors import InputError
from irlab.interp import evaluate
from irlab.passmgr import PassManager, PassRecord
from irlab.schedule import build_pipeline
from irlab.types import f32, tensor
from irlab.weights import Array, Encode, Parts, Slice, with_codes

NAME = "model.layers.1.mlp.up_proj.weight"


def matrix(rows: int = 32, columns: int = 24) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("shared", [2, 8, 16, 32])
@pytest.mark.parametrize("bits", [2, 4, 5])
def test_a_table_is_stored_once_and_read_by_any_rows(bits: int, shared: int) -> None:
    encoding, weight = CodebookEncoding(bits, shared), matrix()
    recipe = Encode(Array(tensor(f32, weight.shape), weight), encoding)
    whole = recipe.read()
    for group in whole.reshape(-1, shared, weight.shape[1]):
        assert len(np.unique(group)) <= 1 << bits
    stored = with_codes(weight.shape, encoding, recipe.codes(0, len(weight)))
    assert isinstance(stored, Parts)
    np.testing.assert_array_equal(stored.read(), whole)
    for start, stop in ((0, 1), (3, 21), (shared - 1, shared + 1 if shared < 32 else 32)):
        np.testing.assert_array_equal(recipe.rows(start, stop), whole[start:stop])
        np.testing.assert_array_equal(stored.rows(start, stop), whole[start:stop])
    numbers = sum(part.recipe_bytes if hasattr(part, "recipe_bytes") else part.size_bytes for part in stored.parts)
    assert numbers <= weight.size * bits / 8 + len(weight) * (2 * max(1, -(-(1 << bits) // shared)) + 1)


def test_rows_that_share_a_table_cannot_be_packed_apart() -> None:
    encoding, weight = CodebookEncoding(4, 16), matrix()
    cut = Slice(Encode(Array(tensor(f32, weight.shape), weight), encoding), 0, 8, 24)
    with pytest.raises(InputError, match="must stay together"):
        encoding.pack(cut.codes(0, 16))


def run(module: Module, pipeline: str, ids: object, cache: Path) -> tuple[Module, PassRecord]:
    new = module.clone()
    manager = PassManager(build_pipeline(pipeline), Context(calibration=Sample(ids, length=32), cache_dir=cache))
    return new, manager.run(new)[-1]


@pytest.fixture(scope="module")
def shared(module: Module, ids: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[Module, PassRecord]:
    return run(module, "share-weights", ids, tmp_path_factory.mktemp("cache"))


def test_what_inputs_weigh_counts(
    module: Module, shared: tuple[Module, PassRecord], ids: np.ndarray, tmp_path: Path
) -> None:
    wanted = evaluate(module, {"input_ids": ids})["logits"]

    def off(changed: Module) -> float:
        return float((evaluate(changed, {"input_ids": ids})["logits"] - wanted).norm() / wanted.norm())

    plain, _ = run(module, "share-weights{method=k-means}", ids, tmp_path)
    weighted, _ = run(module, "share-weights{method=hessian}", ids, tmp_path)
    assert off(shared[0]) < 0.8 * off(weighted) and off(weighted) < 1.05 * off(plain)
    bits = shared[1].layers[NAME]["bits"]
    assert 4 < bits < 4.3 and str(shared[0].weights[NAME].type.element) == "codebook<4, rows=16>"


def test_a_directory_and_a_cache_hold_it(shared: tuple[Module, PassRecord], ids: np.ndarray, tmp_path: Path) -> None:
    irlab.emit(shared[0], "ir", tmp_path / "m.irlab")
    again = irlab.load(tmp_path / "m.irlab")
    np.testing.assert_array_equal(again.weights[NAME].recipe.read(), shared[0].weights[NAME].recipe.read())
    rows = again.weights[NAME].recipe.rows(5, 9)
    np.testing.assert_array_equal(rows, shared[0].weights[NAME].recipe.read()[5:9])


@pytest.mark.parametrize("target", ["onnx", "gguf"])
def test_runtimes_compute_the_same(target: str, shared: tuple[Module, PassRecord], tmp_path: Path) -> None:
    out = tmp_path / ("m.gguf" if target == "gguf" else "m.onnx")
    done = irlab.emit(shared[0], target, out, parity=True)
    assert done.parity.kl < 0.01
    if target == "gguf":
        assert any("stored expanded" in text for text in done.notes)
    else:
        matrices = sum(s.size_bytes for s in shared[0].weights.values() if s.type.encoding is not None)
        others = sum(s.size_bytes for s in shared[0].weights.values() if s.type.encoding is None)
        assert done.bytes < 1.2 * matrices + 2 * others + 300_000
