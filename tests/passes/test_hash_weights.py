"""hash-weights: tables and a hash are all that is stored; training makes them useful; runtimes expand the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import irlab
from irlab import Context, Module
from irlab.calibration import Sample
from irlab.encodings import HashedEncoding, parse_encoding
from irlab.errors import InputError
from irlab.interp import evaluate
from irlab.passes.share.hash_weights import trained
from irlab.passmgr import PassManager
from irlab.schedule import build_pipeline
from irlab.weights import with_codes

NAME = "model.layers.1.mlp.up_proj.weight"


def problem(rows: int = 12, columns: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, columns)) @ rng.standard_normal((columns, columns))
    return rng.standard_normal((rows, columns)).astype(np.float32), (x.T @ x / 200 + np.eye(columns)).astype(np.float32)


def loss(off: np.ndarray, hessian: np.ndarray) -> float:
    return float(np.vdot(off @ hessian, off))


def test_training_solves_the_least_squares_of_every_row() -> None:
    weight, hessian = problem()
    encoding = HashedEncoding(4, 7)
    codes = trained(weight, hessian, encoding, 60)
    untrained = encoding.decode(encoding.encode(weight))
    places, signs = encoding.places(codes["row"], 32)
    best = np.empty_like(weight)
    for i in range(len(weight)):
        sketch = np.zeros((32, 8))
        sketch[np.arange(32), places[i]] = signs[i]
        used = np.abs(sketch).sum(0) > 0
        sketch = sketch[:, used]
        best[i] = sketch @ np.linalg.solve(sketch.T @ hessian @ sketch, sketch.T @ hessian @ weight[i])
    least = loss(weight - best, hessian)
    assert loss(weight - encoding.decode(codes), hessian) < 1.01 * least < 0.95 * loss(weight - untrained, hessian)


def test_rows_can_be_stored_cut_and_joined() -> None:
    weight, hessian = problem()
    encoding = HashedEncoding(4)
    codes = trained(weight, hessian, encoding, 5)
    stored = with_codes(weight.shape, encoding, codes)
    np.testing.assert_array_equal(stored.rows(3, 7), encoding.decode(codes)[3:7])
    assert parse_encoding(str(encoding)) == encoding
    assert len(np.unique(np.abs(stored.read()[0]))) <= 8
    for text in ("hashed<8>", "hashed<x, seed=0>", "hashed<1, seed=0>", "hashed<8, seed=-1>"):
        with pytest.raises(InputError):
            parse_encoding(text)


@pytest.fixture(scope="module")
def hashed(module: Module, ids: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Module:
    new = module.clone()
    ctx = Context(calibration=Sample(ids, length=32), cache_dir=tmp_path_factory.mktemp("cache"))
    PassManager(build_pipeline("hash-weights{compression=4}"), ctx).run(new)
    return new


def test_trained_it_is_of_more_use_than_untrained(module: Module, hashed: Module, ids: np.ndarray) -> None:
    from irlab.passes.quantize.selection import Role, candidates, encode_weights

    untrained = module.clone()
    names = [c.symbol.name for c in candidates(untrained.graph) if c.role is Role.MATRIX]
    encode_weights(untrained.graph, dict.fromkeys(names, HashedEncoding(4)))
    wanted, trained_, begun = (evaluate(m, {"input_ids": ids})["logits"] for m in (module, hashed, untrained))
    assert float((trained_ - wanted).norm()) < 0.8 * float((begun - wanted).norm())
    assert str(hashed.weights[NAME].type.element) == "hashed<4, seed=0>"


@pytest.mark.parametrize("target", ["onnx", "gguf"])
def test_runtimes_compute_the_same(target: str, hashed: Module, tmp_path: Path) -> None:
    out = tmp_path / ("m.gguf" if target == "gguf" else "m")
    done = irlab.emit(hashed, "gguf{type=f32}" if target == "gguf" else target, out, parity=True)
    assert done.parity.kl < 0.01 and any("storage only" in text for text in done.notes)
