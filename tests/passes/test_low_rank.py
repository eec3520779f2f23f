"""low-rank: the best products of their rank, ranks where they count, in every runtime, and with quantize behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader

import irlab
from irlab import Context, Module, nn
from irlab.api import make_backend
from irlab.calibration import Sample
from irlab.errors import InputError
from irlab.interp import evaluate
from irlab.low_rank import multiply_out
from irlab.passes.low_rank.factors import factors, refitted, squared_singular_values
from irlab.passes.low_rank.ranks import Spectrum, allocated, holding, uniform
from irlab.passmgr import PassManager, PassRecord
from irlab.schedule import build_pipeline
from irlab.types import f32, tensor
from irlab.weights import Array, Factor, Product, static_shape


def correlated(columns: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, columns)) @ rng.standard_normal((columns, columns)) * rng.uniform(0.1, 3, columns)
    return x.T @ x / 300


def loss(off: np.ndarray, hessian: np.ndarray) -> float:
    return float(np.vdot(off @ hessian, off))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_factors_lose_what_is_cut_off(shape: tuple[int, int]) -> None:
    weight, hessian = np.random.default_rng(0).standard_normal(shape), correlated(shape[1])
    a, b = factors(weight, hessian, 7)
    lost = loss(weight - b @ a, hessian)
    assert lost == pytest.approx(squared_singular_values(weight, hessian)[7:].sum(), rel=1e-6)
    plain_a, plain_b = factors(weight, np.eye(shape[1]), 7)
    assert lost < 0.9 * loss(weight - plain_b @ plain_a, hessian)
    fitted = loss(weight - refitted(weight, hessian, plain_a) @ plain_a, hessian)
    assert lost < fitted < loss(weight - plain_b @ plain_a, hessian)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_recipes_of_factors_are_a_singular_value_decomposition(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    source = Array(tensor(f32, shape), weight)
    product = Product(Factor(source, 5, "a"), Factor(source, 5, "b"))
    u, s, v = np.linalg.svd(weight)
    np.testing.assert_allclose(product.read(), (u[:, :5] * s[:5]) @ v[:5], atol=1e-4)
    np.testing.assert_array_equal(product.rows(3, 6), product.read()[3:6])
    whole = Product(Factor(source, min(shape), "a"), Factor(source, min(shape), "b"))
    np.testing.assert_allclose(whole.read(), weight, atol=1e-4)


def test_ranks_go_where_they_count() -> None:
    flat, steep = np.ones(64), np.exp(-np.arange(64))
    spectra = {"flat": Spectrum(64, 64, flat), "steep": Spectrum(64, 64, steep)}
    ranks = allocated(spectra, 0.3, 4)
    assert ranks is not None and ranks["steep"] <= 24 and ranks["flat"] == 0  # 0: it stays whole
    spent = sum(64 * 64 if not rank else rank * 128 for rank in ranks.values())
    assert spent <= 0.7 * 2 * 64 * 64
    assert allocated(spectra, 0.99, 32) is None
    assert holding(spectra["steep"], 0.99, 1) == 5 and holding(spectra["flat"], 0.9, 1) == 0
    assert uniform((64, 64), 0.25, 8) == 24 and uniform((64, 64), 0.0, 8) == 0


# In a model


def run(module: Module, pipeline: str, ids: object, cache: Path) -> tuple[Module, list[PassRecord]]:
    new = module.clone()
    manager = PassManager(build_pipeline(pipeline), Context(calibration=Sample(ids, length=32), cache_dir=cache))
    return new, manager.run(new)


def parameters(module: Module) -> int:
    table = "model.embed_tokens.weight"
    return sum(int(np.prod(s.type.shape)) for n, s in module.weights.items() if n != table and s.type.rank == 2)


def logits(module: Module, ids: np.ndarray) -> torch.Tensor:
    return evaluate(module, {"input_ids": ids})["logits"].detach()


def off(module: Module, changed: Module, ids: np.ndarray) -> float:
    wanted = logits(module, ids)
    return float((logits(changed, ids) - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def thin(module: Module, ids: np.ndarray, cache: Path) -> Module:
    return run(module, "low-rank{ratio=0.2 multiple=8}", ids, cache)[0]


def test_a_fifth_of_the_parameters_goes_and_less_is_lost(
    module: Module, thin: Module, ids: np.ndarray, cache: Path
) -> None:
    assert 0.75 * parameters(module) < parameters(thin) <= 0.8 * parameters(module)
    plain, _ = run(module, "low-rank{method=svd ratio=0.2 multiple=8}", ids, cache)
    published, _ = run(module, "low-rank{ratio=0.2 multiple=8 allocate=uniform refit=false}", ids, cache)
    assert off(module, thin, ids) < 0.9 * min(off(module, plain, ids), off(module, published, ids))


def test_ranks_may_be_given_per_layer(module: Module, ids: np.ndarray, cache: Path) -> None:
    text = 'low-rank{method=asvd ratio=0.2 multiple=8}@"*.0.mlp.up_proj.weight"{rank=24}@"model.layers.1"{rank=0}'
    new, (record,) = run(module, text, ids, cache)
    assert static_shape(new.weights["model.layers.0.mlp.up_proj.weight.a"].type)[0] == 24
    assert "model.layers.1.mlp.up_proj.weight" in new.weights
    assert 0 < record.layers["model.layers.0.mlp.up_proj.weight"]["output_error"] < 1


def test_energy_decides_each_rank_by_itself(module: Module, ids: np.ndarray, cache: Path) -> None:
    most, _ = run(module, "low-rank{energy=0.99 multiple=4}", ids, cache)
    least, _ = run(module, "low-rank{energy=0.7 multiple=4}", ids, cache)
    assert parameters(least) < parameters(most) <= parameters(module)


def test_multiplied_out_it_computes_the_same(thin: Module, ids: np.ndarray) -> None:
    whole = thin.clone()
    assert multiply_out(whole.graph) > 0 and not whole.graph.find(nn.LowRankLinear)
    torch.testing.assert_close(logits(whole, ids), logits(thin, ids), atol=1e-3, rtol=1e-3)


def test_gguf_holds_quantised_factors_as_a_quantised_whole(
    module: Module, ids: np.ndarray, cache: Path, tmp_path: Path
) -> None:
    half = irlab.run(module, "cast{dtype=bf16}")
    new, _ = run(half, "low-rank{ratio=0.2 multiple=32},quantize{scheme=int8},kv-cache", ids, cache)
    rows = make_backend("gguf", {}).plan(new)
    assert all(row.holding != "none" for row in rows)
    done = irlab.emit(new, "gguf", tmp_path / "m.gguf", parity=True)
    types = {t.tensor_type.name for t in GGUFReader(done.out).tensors if ".ffn_" in t.name and "norm" not in t.name}
    assert types == {"Q8_0"}
    assert any("rounded once more" in text for text in done.notes)


def test_factors_can_be_quantised(module: Module, ids: np.ndarray, cache: Path) -> None:
    new, records = run(module, "low-rank{ratio=0.2 multiple=32},quantize{method=gptq scheme=int8}", ids, cache)
    assert [record.name for record in records] == ["low-rank", "quantize"]
    pairs = [op for op in new.graph.find(nn.LowRankLinear) if op.a.type.encoding is not None]
    assert pairs and all(op.b.type.encoding is not None for op in pairs)
    assert off(module, new, ids) < 1.2 * off(module, run(module, "low-rank{ratio=0.2}", ids, cache)[0], ids) + 0.02


@pytest.mark.parametrize("encoded", [False, True])
def test_onnx_runs_two_products(thin: Module, encoded: bool, ids: np.ndarray, cache: Path, tmp_path: Path) -> None:
    module = irlab.run(thin, "quantize{scheme=int8 group=16 indivisible=keep}") if encoded else thin
    done = irlab.emit(module, "onnx", tmp_path / "m.onnx", parity=True)
    assert done.parity.kl < 0.01
    if not encoded:
        import onnx

        graph = onnx.load(tmp_path / "m.onnx" / "model.onnx", load_external_data=False).graph
        assert any(".a" in tensor.name for tensor in graph.initializer)


def test_tensorrt_runs_two_products(thin: Module, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    rows = irlab.api.make_backend("tensorrt", {}).plan(thin)
    assert all(row.holding != "none" for row in rows if "low_rank" in row.what)


@pytest.mark.parametrize("target", ["gguf", "hf"])
def test_elsewhere_the_product_is_stored(target: str, thin: Module, tmp_path: Path) -> None:
    rows = irlab.api.make_backend(target, {}).plan(thin)
    assert any("no smaller and no faster" in row.note for row in rows)
    done = irlab.emit(thin, target, tmp_path / ("m.gguf" if target == "gguf" else "m"), parity=True)
    assert done.parity.kl < 0.01


def test_what_cannot_be_removed_is_refused(module: Module, ids: np.ndarray, cache: Path) -> None:
    with pytest.raises(InputError, match="cannot be removed"):
        run(module, "low-rank{ratio=0.9 multiple=64}", ids, cache)
