"""Statistics of a model on calibration data: right, shared, cached, spilled; and data that cannot be used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import irlab
from irlab import Context, Module
from irlab.activations import Activations
from irlab.analysis import Analysis, ByWeight, InputHessian, InputStatistics, OutputGradient, TableGradient
from irlab.cache import Shelf, size_limit, trim
from irlab.calibration import Sample, read_text
from irlab.errors import InputError
from irlab.gradients import drawn
from irlab.interp import evaluate
from irlab.ops import nn, prim
from irlab.passmgr import PassManager
from irlab.quality import EvaluateEach, Quality, quality
from irlab.schedule import build_pipeline
from irlab.walk import Walk
from irlab.weight_uses import replace_weights
from irlab.weights import Array, WeightSymbol

DOWN, UP, HEAD = (f"model.layers.1.mlp.{n}_proj.weight" for n in ("down", "up", "gate"))
TEXT = "Once upon a time there was a little girl who loved to play outside with her red ball. " * 20


@pytest.fixture(scope="module")
def module() -> Module:
    return irlab.run(irlab.load("demo"), "fuse,cast{dtype=f32}")


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1024, (6, 24))


def context(module: Module, source: object, cache: Path, **options: int) -> Context:
    ctx = Context(calibration=Sample(source, **options), cache_dir=cache)
    ctx.manager.module = module
    return ctx


def inputs_of_down(module: Module, ids: np.ndarray) -> torch.Tensor:
    """What layer 1's down projection reads, from a whole run: f32[rows, ffn]."""
    graph = module.clone().graph
    mlp = graph.find(nn.GatedMLP)[1]
    gate, up = nn.linear(mlp.x, mlp.gate), nn.linear(mlp.x, mlp.up)
    inner = graph.add(prim.mul(nn.activate(gate, mlp.activation), up).op).result
    graph.set_outputs({"inner": inner})
    found = evaluate(graph, {"input_ids": ids}, outputs=["inner"])["inner"]
    return found.reshape(-1, found.shape[-1])


def test_statistics_are_those_of_a_whole_run(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    ctx = context(module, ids, tmp_path, length=24)
    x = inputs_of_down(module, ids).double()
    hessian, statistics = ctx.analysis(InputHessian)[DOWN], ctx.analysis(InputStatistics)[DOWN]
    assert hessian.count == statistics.count == len(x) == 144
    np.testing.assert_allclose(hessian.matrix, (x.T @ x / len(x)).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics.max_abs, x.abs().amax(0).numpy(), rtol=1e-5)
    np.testing.assert_allclose(statistics.mean_square, hessian.diagonal, rtol=1e-4)


def test_what_is_made_of_facts_is_kept_in_their_place(
    module: Module, ids: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied = irlab.run(module, "tie-layers{groups=1-2}")
    whole = context(tied, ids, tmp_path / "whole", length=24).analysis(InputHessian)
    ctx = context(tied, ids, tmp_path / "made", length=24)
    names = {DOWN, HEAD, "model.layers.3.mlp.down_proj.weight", "not.there"}

    def made() -> dict[str, np.ndarray]:
        return ctx.distilled(InputHessian, lambda name, fact: fact.diagonal + len(name), names, "diagonals")

    first = made()
    assert first.keys() == names - {"not.there"}
    for name, found in first.items():  # those of a weight that two layers read are of both
        np.testing.assert_allclose(found - len(name), whole[name].diagonal, rtol=1e-6)
    kept = list((tmp_path / "made").rglob("layer-*.safetensors"))
    assert (
        sum(file.stat().st_size for file in kept)
        < 40_000
        < sum(file.stat().st_size for file in (tmp_path / "whole").rglob("*.safetensors"))
    )
    # A run that was killed goes on, and collects again what was only in memory.
    monkeypatch.setattr(InputHessian, "empty", classmethod(lambda cls, width: pytest.fail("collected again")))
    made()
    monkeypatch.undo()
    max(kept, key=lambda file: file.stat().st_size).unlink()
    again = made()
    assert all((again[name] == first[name]).all() for name in first)


def test_every_matrix_is_covered_once(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    found = context(module, ids, tmp_path, length=24).analysis(InputStatistics)
    assert len(found) == 4 * 7 + 1 and "model.embed_tokens.weight" in found  # the head is tied to the table


def test_gradients_are_those_of_the_loss(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    found = context(module, ids, tmp_path, length=24).analysis(OutputGradient)[DOWN]
    graph = module.clone().graph
    probe = torch.zeros(6, 24, 256, requires_grad=True)
    mlp = graph.find(nn.GatedMLP)[1]
    extra = graph.input("probe", mlp.result.type)
    total = prim.add(nn.gated_mlp(*mlp.operands, activation=mlp.activation), extra)
    graph.replace(mlp, total)
    logits = evaluate(graph, {"input_ids": ids, "probe": probe})["logits"]
    logits = logits.reshape(-1, 1024)
    functional.cross_entropy(logits, drawn(logits, 0, 0), reduction="sum").backward()
    assert probe.grad is not None
    wanted = probe.grad.reshape(-1, 256).double().square().mean(0)
    np.testing.assert_allclose(found.mean_square, wanted.numpy(), rtol=1e-3, atol=1e-12)


def test_gradients_of_a_table_are_those_of_what_was_read(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    ctx = context(module, ids, tmp_path, length=24)
    found = ctx.analysis(TableGradient)[name]
    graph = module.clone().graph
    (op,) = graph.find(nn.Embedding)
    extra = graph.input("probe", op.result.type)
    read = nn.embedding(*op.operands)
    graph.replace(op, prim.add(read, extra))
    probe = torch.zeros(6, 24, found.by_column.size, requires_grad=True)
    logits = evaluate(graph, {"input_ids": ids, "probe": probe})["logits"]
    logits = logits.reshape(-1, 1024)
    functional.cross_entropy(logits, drawn(logits, 0, 0), reduction="sum").backward()
    assert probe.grad is not None
    squares = probe.grad.reshape(-1, probe.shape[-1]).double().square().numpy()
    assert found.count == ids.size and found.reads[ids[0, 0]] == np.count_nonzero(ids == ids[0, 0])
    np.testing.assert_allclose(found.by_column, squares.sum(0), rtol=1e-3)
    wanted = squares[ids.reshape(-1) == ids[2, 5]].sum()
    np.testing.assert_allclose(found.by_row[ids[2, 5]], wanted, rtol=1e-3)
    # The head is tied to the table; its facts are kept apart, and come from the same walk.
    assert ctx.analysis(OutputGradient)[name].mean_square.shape == (1024,)
    assert len(list((tmp_path / "analyses").iterdir())) == 1


def test_what_was_collected_is_read_again(
    module: Module, ids: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = context(module, ids, tmp_path, length=24).analysis(InputHessian)[UP].matrix
    calls: list[int] = []
    monkeypatch.setattr(InputHessian, "add", lambda self, x: calls.append(1))
    assert np.array_equal(context(module, ids, tmp_path, length=24).analysis(InputHessian)[UP].matrix, first)
    assert not calls
    changed = irlab.run(module, "quantize{scheme=int2}")
    context(changed, ids, tmp_path, length=24).analysis(InputHessian)
    assert calls


def test_the_cache_forgets_what_was_used_least_recently(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old", "older", "oldest")):
        directory = tmp_path / "analyses" / name
        directory.mkdir(parents=True)
        (directory / "layer-0000.safetensors").write_bytes(bytes(1000))
        for path in (directory / "layer-0000.safetensors", directory):
            os.utime(path, (1e6 - age * 1e4, 1e6 - age * 1e4))
    trim(tmp_path, 2500, now=1e6)
    assert {path.name for path in (tmp_path / "analyses").iterdir()} == {"new", "old"}
    # What a process has opened, and what was touched within the hour, stays whatever its size.
    Shelf.open(tmp_path, "analyses", "old")
    trim(tmp_path, 0, now=1e6)
    assert {path.name for path in (tmp_path / "analyses").iterdir()} == {"new", "old"}


def test_a_limit_of_the_cache_is_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRLAB_CACHE_SIZE", "20GB")
    assert size_limit() == 20_000_000_000
    monkeypatch.setenv("IRLAB_CACHE_SIZE", "much")
    with pytest.raises(InputError, match="IRLAB_CACHE_SIZE=much is no size"):
        size_limit()


def test_weights_that_read_one_value_share_its_facts() -> None:
    fact = InputStatistics.empty(4)
    facts = ByWeight(InputStatistics, {"tap0": fact}, {"q": ("tap0",), "k": ("tap0",), "twice": ("tap0", "tap0")})
    assert facts["q"] is facts["k"] and facts.sharing() == [["q", "k"], ["twice"]]
    fact.add(torch.ones(3, 4))
    assert facts["twice"].count == 6


@pytest.mark.parametrize("kind", [InputStatistics, InputHessian])
def test_facts_come_back_from_arrays(kind: type[InputStatistics] | type[InputHessian]) -> None:
    fact = kind.empty(5)
    fact.add(torch.randn(7, 5))
    again: Analysis = kind.from_arrays(fact.arrays())
    for name, array in fact.arrays().items():
        assert np.array_equal(again.arrays()[name], array)


def test_activations_beyond_the_budget_lie_in_files(tmp_path: Path) -> None:
    with Activations(memory_bytes=100, directory=tmp_path) as store:
        store.put("small", 0, torch.arange(10))
        store.put("large", 0, torch.arange(1000).bfloat16())
        assert store.spilled == 1 and len(list(tmp_path.rglob("*.bin"))) == 1
        assert torch.equal(store.get("large", 0), torch.arange(1000).bfloat16())
        store.drop("large")
        assert not list(tmp_path.rglob("*.bin"))
        store.put("large", 0, torch.ones(50))
    assert not list(tmp_path.iterdir())


def test_nan_activations_name_the_layer(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    broken = module.clone()
    symbol = broken.weights[UP]
    values = np.array(symbol.recipe.read())
    values[3, 5] = np.nan
    replace_weights(broken.graph, {UP: WeightSymbol(UP, Array(symbol.type, values))})
    with pytest.raises(InputError, match=r"the input of model\.layers\.1\.mlp\.down_proj\.weight .* holds NaN"):
        context(broken, ids, tmp_path, length=24).analysis(InputHessian)


# Data


def test_text_is_cut_into_pieces_of_equal_length(module: Module, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, "utf-8")
    batches = Sample(file, tokens=200, length=32).batches(module)
    assert [batch["input_ids"].shape for batch in batches] == [(7, 32)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"  \n", "is empty"),
        ("short.txt", b"Once upon a time", "is too short: . tokens, at least 128"),
        ("binary.txt", b"abc\x00def" * 100, "is a binary file"),
        ("latin.txt", "été".encode("latin-1") * 100, "is not UTF-8 text: byte 0 is 0xe9"),
        ("broken.npy", b"no array", "is not a NumPy file"),
        ("broken.json", b"[1, 2", "is not a JSON file"),
        ("words.json", b'["a", "b"]', "must be integers"),
        ("floats.json", b"[1.5, 2.5]", "must be integers"),
        ("table.json", b'{"a": 1}', "must be integers"),
        ("ragged.json", b"[[1, 2], [3, [4]]]", "must be integers"),
        ("large.json", json.dumps([1] * 300 + [1024]).encode(), "holds the token 1024, the model knows 0 to 1023"),
        ("negative.json", json.dumps([-1] * 300).encode(), "holds the token -1"),
    ],
)
def test_data_that_cannot_be_used_is_refused(
    module: Module, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Sample(file, tokens=1000, length=301 if name == "large.json" else 64).batches(module)


def test_too_few_tokens_of_a_long_file_are_no_fault_of_the_file(module: Module, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, "utf-8")
    with pytest.raises(InputError, match=r"^3 tokens of .*text.txt are too few \(allow at least 128\)"):
        Sample(file, tokens=3).batches(module)


def test_a_missing_file_and_a_pickle_are_refused(module: Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Sample(tmp_path / "none.txt").batches(module)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(InputError, match="is not a NumPy file"):
        Sample(tmp_path / "objects.npy").batches(module)


def test_text_may_be_cut_inside_a_character(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("ab€" * 100, "utf-8")
    assert read_text(tmp_path / "t.txt", 4) == "ab"


def test_the_model_writes_its_own_calibration_text(module: Module) -> None:
    batches = Sample("self", tokens=160, length=16).batches(module, seed=3)
    again = Sample("self", tokens=160, length=16).batches(module, seed=3)
    assert sum(batch["input_ids"].size for batch in batches) == 160
    assert all(np.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again))


# Evaluation


def test_quality_is_that_of_the_logits(module: Module, ids: np.ndarray) -> None:
    worse = irlab.run(module, "quantize{scheme=int3}")
    found = quality(worse, [{"input_ids": ids}], Context(), module)
    p, q = (torch.log_softmax(evaluate(m, {"input_ids": ids})["logits"].double(), -1) for m in (module, worse))
    losses = -q[:, :-1].gather(-1, torch.from_numpy(ids)[:, 1:, None])
    assert found.tokens == ids.size and found.kl is not None
    assert found.perplexity == pytest.approx(float(losses.mean().exp()), rel=1e-4)
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


def test_the_original_runs_once_for_all_lossy_passes(
    module: Module, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    advanced: list[str] = []
    advance = Walk.advance
    monkeypatch.setattr(Walk, "advance", lambda self, layer: advanced.append(layer.name) or advance(self, layer))
    found: dict[str, Quality] = {}
    ctx = Context()
    watcher = EvaluateEach(Sample(ids, length=24), ctx, found.__setitem__)
    passes = build_pipeline("quantize{scheme=int8},cast{dtype=bf16},quantize{scheme=int3 embeddings=int3}")
    changed = module.clone()
    PassManager(passes, ctx, [watcher]).run(changed)
    lossy = sum(step.exactness == "lossy" for step in passes)
    assert len(found) == 1 + lossy and advanced.count("model.layers.0") == 1 + lossy
    alone = quality(changed, [{"input_ids": ids}], Context(), module)
    assert list(found.values())[-1].kl == pytest.approx(alone.kl, rel=1e-4)


def test_a_model_is_as_good_as_itself(module: Module, ids: np.ndarray) -> None:
    found = quality(module, [{"input_ids": ids}], Context(), module)
    assert found.kl == pytest.approx(0, abs=1e-7) and found.top1 == 1
