"""prune-hidden: a stream that moves in few directions loses the others without a trace, in every weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_model

import irlab
from irlab import Context, GraphBuilder, Module, nn, prim
from irlab.calibration import Sample
from irlab.errors import InputError
from irlab.passes.prune.hidden import principal_components
from irlab.passmgr import PassManager
from irlab.quality import quality
from irlab.schedule import build_pipeline
from irlab.verify import verify
from irlab.weight_uses import replace_weights
from irlab.weights import Array, WeightSymbol


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 96, (16, 32))


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Module:
    """A Llama whose stream stays in 40 of its 64 dimensions, turned at random."""
    directory = tiny_model(tmp_path_factory.mktemp("llama"), "llama-tied", num_hidden_layers=2)
    module = irlab.run(irlab.load(str(directory)), "fuse")
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((64, 40)))[0]
    inside = (basis @ basis.T).astype(np.float32)
    symbols = {}
    for name, symbol in module.weights.items():
        values = np.array(symbol.recipe.read())
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            values = inside @ values
        elif name.endswith("embed_tokens.weight"):
            values = values @ inside
        elif name.endswith(("norm.weight", "layernorm.weight")):
            values = np.ones_like(values)
        symbols[name] = WeightSymbol(name, Array(symbol.type, np.ascontiguousarray(values)))
    replace_weights(module.graph, symbols)
    return module


def run(module: Module, pipeline: str, ids: np.ndarray, cache: Path) -> Module:
    new = module.clone()
    PassManager(build_pipeline(pipeline), Context(calibration=Sample(ids, length=32), cache_dir=cache)).run(new)
    verify(new)
    return new


def loss(module: Module, original: Module, ids: np.ndarray) -> float:
    found = quality(module, Sample(ids, length=32).batches(module), Context(), original).kl
    assert found is not None
    return found


def test_directions_in_which_nothing_moves_cost_nothing(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new = run(module, "prune-hidden{ratio=0.375 multiple=8}", ids, tmp_path)
    assert new.weights["model.embed_tokens.weight"].type.shape == (96, 40)
    assert new.weights["model.layers.0.self_attn.q_proj.weight"].type.shape == (64, 40)
    assert loss(new, module, ids) < 1e-5
    selected = run(module, "prune-hidden{ratio=0.375 multiple=8 method=select}", ids, tmp_path)
    assert loss(selected, module, ids) > 1e-2


def test_gains_go_into_what_reads_the_norm(tmp_path: Path, ids: np.ndarray) -> None:
    module = irlab.run(irlab.load(str(tiny_model(tmp_path / "m", "llama-tied", num_hidden_layers=2))), "fuse")
    losses = [
        loss(run(module, f"prune-hidden{{ratio={r} multiple=4}}", ids, tmp_path), module, ids) for r in (0.0625, 0.5)
    ]
    assert losses[0] < losses[1]


def test_principal_components_come_first() -> None:
    vectors = principal_components(np.diag([1.0, 5.0, 3.0]))
    np.testing.assert_allclose(np.abs(vectors), [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_what_is_refused(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibration data is needed"):
        irlab.run(module, "prune-hidden{ratio=0.25}")
    b = GraphBuilder()
    x = nn.embedding(b.input("input_ids", "i64", ("batch", "seq")), b.random_weight("e", "f32", (16, 8)))
    normed = nn.rms_norm(prim.relu(x), b.random_weight("g", "f32", (8,)))
    b.output(logits=nn.linear(normed, b.random_weight("head", "f32", (16, 8), seed=1)))
    few = np.random.default_rng(0).integers(0, 16, (8, 32))
    with pytest.raises(
        InputError, match=r"^prune-hidden: prim\.relu cannot follow a rotation .* it works on single features"
    ):
        run(b.module(), "prune-hidden{ratio=0.25 multiple=1}", few, tmp_path)
    b = GraphBuilder()
    x = nn.embedding(b.input("input_ids", "i64", ("batch", "seq")), b.random_weight("e", "f32", (16, 8)))
    b.output(hidden=nn.rms_norm(x, b.random_weight("g", "f32", (8,))))
    with pytest.raises(InputError, match="stays at 8: the output 'hidden' has it"):
        irlab.run(b.module(), "prune-hidden{ratio=0.25 method=select}")
