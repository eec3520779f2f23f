"""dynamic-sparsity: as many inputs left out as asked for, where they hurt least; run by ONNX, refused by others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import irlab
from irlab import Context, Module, nn, prim
from irlab.calibration import Sample
from irlab.errors import LegalityError
from irlab.interp import evaluate
from irlab.ir import Graph, Weight
from irlab.passes.dynamic_sparsity.magnitudes import InputMagnitudes
from irlab.passmgr import PassManager, PassRecord
from irlab.schedule import build_pipeline
from irlab.testing import assert_equivalent
from irlab.types import f32, tensor


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1024, (16, 32))


def run(module: Module, pipeline: str, ids: object, cache: Path) -> tuple[Module, PassRecord]:
    new = module.clone()
    manager = PassManager(build_pipeline(pipeline), Context(calibration=Sample(ids, length=32), cache_dir=cache))
    return new, manager.run(new)[-1]


def test_thresholds_are_quantiles() -> None:
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 4, 8)
    facts = InputMagnitudes.empty(8)
    for part in x.split(1000):
        facts.add(part)
    for share in (0.1, 0.4, 0.9):
        assert float((x.abs() <= facts.threshold(share)).float().mean()) == pytest.approx(share, abs=0.01)
    assert facts.threshold(0) == 0
    gram = np.diag(np.arange(1.0, 9.0))
    small = torch.where(x.abs() <= facts.threshold(0.4), x, 0).double()
    lost, total = (
        float(torch.einsum("ni,ij,nj->", part, torch.from_numpy(gram), part)) for part in (small, x.double())
    )
    assert facts.lost(0.4, gram) == pytest.approx(lost / total, rel=0.15)
    assert facts.lost(1.0, gram) == pytest.approx(1)
    merged = InputMagnitudes.empty(8)
    merged.merge(facts)
    assert merged.threshold(0.4) == facts.threshold(0.4)
    assert facts.divided(np.full(8, 2.0)).threshold(0.5) == pytest.approx(facts.threshold(0.5) / 2)


def left_out(module: Module, ids: np.ndarray) -> float:
    """The share of inputs that are zero, by parameters that read them."""
    graph: Graph = module.clone().graph
    outputs, sizes = {}, {}
    for i, op in enumerate(graph.find(nn.HardShrink)):
        reader = next(iter(op.result.uses))
        assert isinstance(reader, nn.Linear) and isinstance(reader.weight.op, Weight)
        zero = prim.cast(prim.eq(op.result, prim.constant(0.0, op.result.type.dtype)), f32)
        outputs[f"s{i}"] = graph.add(prim.mean(zero, (0, 1, 2)).op).result
        sizes[f"s{i}"] = reader.weight.type.size
    graph.set_outputs(outputs)
    found = evaluate(graph, {"input_ids": ids})
    return sum(float(found[k]) * int(sizes[k]) for k in sizes) / sum(map(int, sizes.values()))


def off(module: Module, changed: Module, ids: np.ndarray) -> float:
    wanted, found = (evaluate(m, {"input_ids": ids})["logits"] for m in (module, changed))
    return float((found - wanted).norm() / wanted.norm())


def test_as_much_is_left_out_as_asked_for(module: Module, ids: np.ndarray, cache: Path) -> None:
    greedy, record = run(module, "dynamic-sparsity{sparsity=0.4 allocate=greedy}", ids[:8], cache)
    uniform, _ = run(module, "dynamic-sparsity{sparsity=0.4}", ids[:8], cache)
    assert record.metrics["inputs_left_out"] == pytest.approx(0.4, abs=0.01)
    for new in (greedy, uniform):
        assert left_out(new, ids[8:]) == pytest.approx(0.4, abs=0.05)
    thresholds = {op.threshold for op in greedy.graph.find(nn.HardShrink)}
    assert len(thresholds) > 4 and off(module, uniform, ids[8:]) < 0.5
    less, _ = run(module, "dynamic-sparsity{sparsity=0.1}", ids[:8], cache)
    assert off(module, less, ids[8:]) < 0.5 * off(module, uniform, ids[8:])


def test_nothing_left_out_changes_nothing(module: Module, ids: np.ndarray, cache: Path) -> None:
    new, _ = run(module, "dynamic-sparsity{sparsity=1e-6}", ids, cache)
    assert off(module, new, ids) < 1e-5
    names = [op.weight.op.symbol.name for op in new.graph.find(nn.Linear) if isinstance(op.weight.op, Weight)]
    assert "model.embed_tokens.weight" in names


def test_its_meaning_is_the_decomposition() -> None:
    graph = Graph()
    x = graph.input("x", tensor(f32, (3, 8)))
    graph.set_outputs({"y": nn.hard_shrink(x, threshold=0.3)})
    other = graph.clone()
    for op in other.find(nn.HardShrink):
        other.replace(op, op.decompose())
    assert_equivalent(Module(graph), Module(other))


def test_onnx_runs_it_and_gguf_and_hf_refuse(module: Module, ids: np.ndarray, cache: Path, tmp_path: Path) -> None:
    new, _ = run(module, "dynamic-sparsity{sparsity=0.3}", ids, cache)
    done = irlab.emit(new, "onnx", tmp_path / "m.onnx", parity=True)
    assert done.parity.kl < 0.01 and any("no gain" in text for text in done.notes)
    with pytest.raises(LegalityError, match="no thresholds of activations"):
        irlab.emit(new, "gguf", tmp_path / "m.gguf")
    with pytest.raises(LegalityError, match="thresholds of activations"):
        irlab.emit(new, "hf", tmp_path / "m")
    quantised = irlab.run(new, "quantize{scheme=int8}")
    assert any(op.weight.type.encoding is not None for op in quantised.graph.find(nn.Linear))
