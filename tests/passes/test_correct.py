"""correct: less error than rounding alone, the least of its rank, in the sweep of quantize, in every runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import irlab
from irlab import Context, Module, nn
from irlab.calibration import Sample
from irlab.errors import InputError
from irlab.low_rank import detach, merge
from irlab.passes.quantize.correct import correction
from irlab.passmgr import PassManager, PassRecord
from irlab.schedule import build_pipeline

GPTQ = "quantize{method=gptq scheme=int4},correct{rank=16}"


@pytest.fixture(scope="module")
def module() -> Module:
    return irlab.run(irlab.load("demo"), "fuse")


def run(module: Module, pipeline: str, ids: object, cache: Path) -> tuple[Module, list[PassRecord]]:
    new = module.clone()
    manager = PassManager(build_pipeline(pipeline), Context(calibration=Sample(ids, length=32), cache_dir=cache))
    return new, manager.run(new)


@pytest.fixture(scope="module")
def corrected(module: Module, ids: np.ndarray, cache: Path) -> Module:
    return run(module, GPTQ, ids, cache)[0]


def output_error(off: np.ndarray, hessian: np.ndarray) -> float:
    return float(np.vdot(off @ hessian, off))


@pytest.mark.parametrize("shape", [(24, 48), (48, 24)])
@pytest.mark.parametrize("seen", [48, 10])
def test_no_product_of_its_rank_is_better(shape: tuple[int, int], seen: int) -> None:
    rng = np.random.default_rng(1)
    error = rng.standard_normal(shape)
    x = rng.standard_normal((300, min(seen, shape[1]))) @ rng.standard_normal((min(seen, shape[1]), shape[1]))
    hessian = x.T @ x / 300
    a, b = correction(error, hessian, 5)
    assert a.shape == (5, shape[1]) and b.shape == (shape[0], 5)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0))
    # Eckart and Young: the singular values that are left are what the best approximation loses.
    values, vectors = np.linalg.eigh(hessian)
    root = vectors * np.sqrt(np.maximum(values, 0))
    least = float(np.square(np.linalg.svd(error @ root, compute_uv=False)[5:]).sum())
    assert output_error(error - b @ a, hessian) == pytest.approx(least, rel=1e-9)


def test_no_error_and_unseen_inputs_give_finite_factors() -> None:
    for error, hessian in ((np.zeros((8, 6)), np.eye(6)), (np.ones((8, 6)), np.zeros((6, 6)))):
        a, b = correction(error, hessian, 32)
        assert np.isfinite(a).all() and np.isfinite(b).all() and a.shape == (6, 6)


def test_one_sweep_sees_weights_before_and_after(module: Module, ids: np.ndarray, cache: Path) -> None:
    new, records = run(module, GPTQ, ids, cache)
    assert [record.name for record in records] == ["sweep", "quantize", "correct"]
    _, quantized, corrected = records
    assert len(quantized.layers) == len(corrected.layers) == 28 and corrected.weights_computed == 56
    for name, errors in corrected.layers.items():
        before = quantized.layers[name]
        assert errors["output_error"] < 0.9 * before["output_error"], name
        rows, columns = new.weights[name].type.shape
        assert errors["bits"] == pytest.approx(before["bits"] + 16 * 16 * (rows + columns) / (rows * columns))
    assert len(new.graph.find(nn.LowRankLinear)) == 28 and not new.graph.find(nn.GatedMLP)
    again, kept = run(module, GPTQ, ids, cache)
    assert kept[2].layers == corrected.layers
    name = "model.layers.3.mlp.down_proj.weight.lora_b"
    assert np.array_equal(again.weights[name].recipe.read(), new.weights[name].recipe.read())


def test_codes_on_demand_know_what_they_are_made_from(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new, records = run(module, 'quantize{scheme=int3},correct@"model.layers.{1..3}"{rank=0}', ids, tmp_path)
    corrected = records[-1]
    assert {name.split(".")[2] for name in corrected.layers} == {"0"}
    assert all(errors["output_error"] < 0.2 for errors in corrected.layers.values())
    assert len(new.graph.find(nn.GatedMLP)) == 3


def test_merged_it_computes_the_same(corrected: Module) -> None:
    merged = corrected.clone()
    assert merge(merged.graph) == 28 and not merged.graph.find(nn.LowRankLinear)
    inputs = {"input_ids": [[1, 5, 9, 200, 31]]}
    expected, found = (irlab.evaluate(m, inputs)["logits"] for m in (corrected, merged))
    assert float((expected - found).abs().max()) < 0.02 * float(expected.abs().max())
    bare = corrected.clone()
    detach(bare.graph)
    assert float((irlab.evaluate(bare, inputs)["logits"] - expected).abs().max()) > 0.05 * float(expected.abs().max())


def test_codes_of_unknown_origin_are_refused(corrected: Module, ids: np.ndarray, cache: Path, tmp_path: Path) -> None:
    irlab.emit(corrected, "ir", tmp_path / "m.irlab")
    again = irlab.load(tmp_path / "m.irlab")
    assert len(again.graph.find(nn.LowRankLinear)) == 28
    with pytest.raises(InputError, match=r"model.layers.0.*was encoded earlier.*share a sweep"):
        run(again, "correct", ids, cache)
    with pytest.raises(InputError, match="no matrix is encoded"):
        run(irlab.run(irlab.load("demo"), "fuse"), "correct", ids, cache)


def test_gguf_holds_an_adapter_beside_the_file(corrected: Module, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    import gguf

    from irlab.backends.gguf.llama_cpp import LlamaCpp

    out = tmp_path / "m.gguf"
    emitted = irlab.emit(corrected, "gguf", out, parity=True)
    adapter = tmp_path / "m.lora.gguf"
    assert sorted(tmp_path.iterdir()) == [out, adapter]
    assert emitted.bytes == out.stat().st_size + adapter.stat().st_size
    assert any("--lora" in note for note in emitted.notes) and emitted.parity.kl < 0.01
    keys = gguf.GGUFReader(adapter)
    assert keys.fields["adapter.type"].contents() == "lora" and keys.fields["adapter.lora.alpha"].contents() == 0
    shapes = {t.name: tuple(map(int, t.shape)) for t in keys.tensors}
    assert len(shapes) == 56
    assert shapes["blk.0.attn_k.weight.lora_a"] == (256, 16) and shapes["blk.0.attn_k.weight.lora_b"] == (16, 128)
    base = {tensor.name for tensor in gguf.GGUFReader(out).tensors}
    assert "blk.0.attn_k.weight" in base and not any("lora" in name for name in base)
    tokens = [1, 5, 9, 200, 31]
    expected = irlab.evaluate(corrected, {"input_ids": [tokens]})["logits"][0].float().numpy()
    with LlamaCpp() as llama:
        bare = llama.logits(out, tokens)
        whole = llama.logits(out, tokens, adapter=adapter)
    assert np.abs(whole - expected).mean() < 0.5 * np.abs(bare - expected).mean()
    assert emitted.runtime is not None
    np.testing.assert_allclose(emitted.runtime.logits(out, [tokens])[0], whole, atol=1e-4)
    with pytest.raises(InputError, match="exists"):
        irlab.emit(corrected, "gguf", out)
    out.unlink()
    with pytest.raises(InputError, match=r"m.lora.gguf exists"):
        irlab.emit(corrected, "gguf", out)


def test_factors_of_8_bits_reach_the_runtimes(module: Module, ids: np.ndarray, cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    import gguf

    new, records = run(module, "quantize{method=gptq},correct{factors=int8}", ids, cache)
    rows, columns = new.weights["model.layers.0.mlp.up_proj.weight"].type.shape
    bits = records[2].layers["model.layers.0.mlp.up_proj.weight"]["bits"]
    assert bits == pytest.approx(4.5 + 8.5 * 32 * (rows + columns) / (rows * columns))
    for target, out in (("gguf", "m.gguf"), ("onnx", "m")):
        assert irlab.emit(new, target, tmp_path / out, parity=True).parity.kl < 0.01
    assert {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.lora.gguf").tensors} == {"Q8_0"}
    with pytest.raises(InputError, match=r"lora_a.*not whole groups"):
        run(narrow(), "quantize{group=0 indivisible=keep},correct{factors=int8}", {"x": np.ones((200, 40))}, cache)


def narrow() -> Module:
    """A linear layer whose width is no multiple of 32."""
    b = irlab.GraphBuilder("narrow")
    x = b.input("x", "f32", ("n", 40))
    b.output(y=nn.linear(x, b.random_weight("w", "f32", (64, 40))))
    return b.module()


def test_gguf_scales_and_reorders_the_factors_with_their_weight() -> None:
    from irlab.backends.gguf.adapter import Base, _apart
    from irlab.errors import LegalityError
    from irlab.types import f32, tensor
    from irlab.weights import Affine, Concat, LowRankUpdate, Random, Take

    weight, a, b = (Random(tensor(f32, shape), seed) for seed, shape in enumerate([(6, 4), (2, 4), (6, 2)]))
    changed = Affine(Take(Base(weight, a, b), (3, 1, 0, 5, 4, 2)), 2.0)
    base, factors = _apart(changed, "w")
    assert factors is not None
    expected = 2 * LowRankUpdate(weight, a, b).read()[[3, 1, 0, 5, 4, 2]]
    np.testing.assert_allclose(base.read() + factors[1].read() @ factors[0].read(), expected, rtol=1e-5)
    with pytest.raises(LegalityError, match="joined of several weights"):
        _apart(Concat((Base(weight, a, b), weight), 0), "w")


def test_onnx_multiplies_twice(corrected: Module, tmp_path: Path) -> None:
    import onnx

    emitted = irlab.emit(corrected, "onnx", tmp_path / "m", parity=True)
    assert emitted.parity.kl < 0.01
    model = onnx.load(tmp_path / "m" / "model.onnx", load_external_data=False)
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("MatMulNBits") == 28 and ops.count("MatMul") >= 56


def test_tensorrt_multiplies_twice(corrected: Module) -> None:
    from irlab.backends.tensorrt import TensorRT

    legal = TensorRT().legalise(corrected.clone(), Context(targets=("tensorrt",)))
    assert not legal.graph.find(nn.LowRankLinear) and len(legal.graph.find(nn.Linear)) == 28 * 3 + 1


def test_hf_merges(corrected: Module, tmp_path: Path) -> None:
    irlab.emit(corrected, "hf", tmp_path / "m", parity=True)
    again = irlab.run(irlab.load(tmp_path / "m"), "fuse")
    inputs = {"input_ids": [[1, 5, 9, 200, 31]]}
    expected, found = (irlab.evaluate(m, inputs)["logits"].float() for m in (corrected, again))
    assert float((expected - found).abs().max()) < 0.02 * float(expected.abs().max())


@pytest.mark.parametrize("target", ["gguf", "onnx", "hf"])
def test_a_plan_says_how_it_is_held(module: Module, target: str) -> None:
    planned = module.clone()
    PassManager(build_pipeline(GPTQ), Context(is_plan=True)).run(planned)
    rows = irlab.api.make_backend(target, {}).plan(planned)
    assert all(row.holding != "none" for row in rows)
    words = {"gguf": "LoRA adapter beside", "hf": "merged", "onnx": "two thin MatMuls"}[target]
    assert any(words in row.note for row in rows)
