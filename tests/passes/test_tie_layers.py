"""tie-layers: one symbol with several uses, stored once where a format can, and the same to every runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import irlab
from irlab import Module
from irlab.floats import as_f32

UP = "model.layers.{}.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def tied(module: Module) -> Module:
    return irlab.run(module, "tie-layers{groups=1-2}")


def test_a_group_reads_the_mean_of_its_matrices(module: Module, tied: Module) -> None:
    one, two = (as_f32(module.weights[UP.format(i)].recipe.read()) for i in (1, 2))
    np.testing.assert_allclose(tied.weights[UP.format(1)].recipe.read(), (one + two) / 2, atol=1e-7)
    assert UP.format(2) not in tied.weights and UP.format(3) in tied.weights
    assert "model.layers.2.input_layernorm.weight" in tied.weights
    before, after = (sum(s.size_bytes for s in m.weights.values()) for m in (module, tied))
    matrices = [s for n, s in module.weights.items() if n.startswith("model.layers.2.") and s.type.rank == 2]
    assert before - after == sum(symbol.size_bytes for symbol in matrices)


def test_a_directory_stores_it_once(tied: Module, tmp_path: Path) -> None:
    irlab.emit(tied, "ir", tmp_path / "m.irlab")
    again = irlab.load(tmp_path / "m.irlab")
    assert again.weights.keys() == tied.weights.keys()


@pytest.mark.parametrize("target", ["onnx", "gguf"])
def test_runtimes_compute_the_same(target: str, tied: Module, tmp_path: Path) -> None:
    done = irlab.emit(tied, target, tmp_path / ("m.gguf" if target == "gguf" else "m"), parity=True)
    assert done.parity.kl < 0.01 and any("storage only" in text for text in done.notes)
