"""prune-neurons and prune-heads: what is missed least goes, the rest makes up for it, and the graph stays whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny_model

import irlab
from irlab import Context, GraphBuilder, Module, nn, prim
from irlab.axes import AxisAnalysis
from irlab.calibration import Sample
from irlab.errors import InputError, UsageError
from irlab.passes.prune.cuts import left_of, width_multiple
from irlab.passes.prune.elimination import eliminate, refit
from irlab.passmgr import PassManager, PassRecord, stored_bytes
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
    return irlab.run(irlab.load(str(tiny_model(tmp_path_factory.mktemp("llama"), "llama"))), "fuse")


def run(module: Module, pipeline: str, ids: object, cache: Path, **context: Any) -> tuple[Module, list[PassRecord]]:
    new = module.clone()
    manager = PassManager(
        build_pipeline(pipeline), Context(calibration=Sample(ids, length=32), cache_dir=cache, **context)
    )
    records = manager.run(new)
    verify(new)
    return new, records


def sizes(module: Module, role: str) -> list[int]:
    return [group.size for group in AxisAnalysis(module.graph).groups.values() if group.role == role]


def loss(module: Module, original: Module, ids: np.ndarray) -> float:
    found = quality(module, Sample(ids, length=32).batches(module), Context(), original).kl
    assert found is not None
    return found


# The algebra


def problem(seed: int = 0, columns: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, columns)) @ rng.standard_normal((columns, columns))
    return rng.standard_normal((5, columns)), x.T @ x / 400


def test_what_stays_is_the_least_squares_fit() -> None:
    weight, hessian = problem()
    units, classes = np.arange(12), np.zeros(12, np.intp)
    found = eliminate(weight, hessian, units, classes, 5, 1e-9)
    stays = np.setdiff1d(np.arange(12), found.removed)
    assert len(stays) == 7 and not found.weight[:, found.removed].any()
    expected = weight @ hessian[:, stays] @ np.linalg.inv(hessian[np.ix_(stays, stays)])
    np.testing.assert_allclose(found.weight[:, stays], expected, rtol=1e-5)
    np.testing.assert_allclose(refit(weight, hessian, stays, 1e-9), expected, rtol=1e-5)
    off = weight - found.weight
    np.testing.assert_allclose(found.cost[-1], np.vdot(off @ hessian, off), rtol=1e-5)


def test_of_two_inputs_that_say_the_same_one_goes() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 4))
    x[:, 3] = x[:, 0]
    weight = np.array([[5.0, 1.0, 1.0, 5.0]])
    found = eliminate(weight, x.T @ x / 400, np.arange(4), np.zeros(4, np.intp), 1, 1e-6)
    assert found.removed[0] in (0, 3)
    np.testing.assert_allclose(found.weight.sum(), 12, rtol=1e-3)


def test_blocks_and_classes() -> None:
    weight, hessian = problem(1)
    units = np.repeat(np.arange(4), 3)
    found = eliminate(weight, hessian, units, np.array([0, 0, 1, 1]), 1, 1e-9)
    assert sorted(found.removed // 2) == [0, 1]  # one of each class
    off = weight - found.weight
    np.testing.assert_allclose(found.cost[-1], np.vdot(off @ hessian, off), rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "wanted", "targets", "expected"),
    [
        (1536, 1152, (), 32),
        (28672, 21504, (), 256),
        (28672, 21504, ("onnx",), 32),
        (100, 75, (), 1),
        (768, 576, (), 32),
    ],
)
def test_widths_suit_the_blocks_of_the_target(size: int, wanted: int, targets: tuple[str, ...], expected: int) -> None:
    assert width_multiple(size, wanted, None, targets) == expected


def test_how_much_is_left() -> None:
    assert left_of(1536, 0.25, 32, "x") == 1152
    assert left_of(3, 0.34, 1, "x") == 2
    assert left_of(8, 0.0, 1, "x") == 8
    with pytest.raises(InputError, match=r"x: ratio=0\.01 prunes none of 64 at multiple=32"):
        left_of(64, 0.01, 32, "x")


# On a model


def test_neurons_go_and_the_rest_makes_up_for_them(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    fitted, (*_, record) = run(module, "prune-neurons{ratio=0.25}", ids, tmp_path)
    assert sizes(fitted, "neurons") == [96] * 3
    assert record.bytes_after == stored_bytes(fitted) < record.bytes_before
    plain, _ = run(module, "prune-neurons{ratio=0.25 refit=false}", ids, tmp_path)
    small, _ = run(module, "prune-neurons{ratio=0.25 score=magnitude refit=false}", ids, tmp_path)
    losses = [loss(new, module, ids) for new in (fitted, plain, small)]
    assert losses[0] < 0.8 * losses[1] and losses[1] < losses[2]


@pytest.mark.parametrize("score", ["activation", "taylor", "magnitude"])
def test_other_scores(module: Module, ids: np.ndarray, tmp_path: Path, score: str) -> None:
    new, _ = run(module, f"prune-neurons{{ratio=0.25 score={score}}}", ids, tmp_path)
    assert sizes(new, "neurons") == [96] * 3


def test_what_nobody_makes_up_for_is_not_scored_as_if_somebody_did(
    module: Module, ids: np.ndarray, tmp_path: Path
) -> None:
    by_default, by_activation, by_obs = (
        loss(run(module, f"prune-neurons{{ratio=0.25 refit=false{score}}}", ids, tmp_path)[0], module, ids)
        for score in ("", " score=activation", " score=obs")
    )
    assert by_default == by_activation < by_obs


def test_what_was_computed_is_read_again(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    pipeline = "prune-heads{ratio=0.5},prune-neurons{ratio=0.25},quantize{method=gptq}"
    first, records = run(module, pipeline, ids, tmp_path)
    again, _ = run(module, pipeline, ids, tmp_path)
    assert [r.name for r in records][-4:] == ["sweep", "prune-heads", "prune-neurons", "quantize"]
    for name, symbol in first.weights.items():
        np.testing.assert_array_equal(again.weights[name].recipe.read(), symbol.recipe.read())
    assert str(first.weights["model.layers.0.mlp.down_proj.weight"].type) == "q<int4, sym, group=32, scale=f16>[64, 96]"
    assert str(first.weights["model.layers.0.self_attn.o_proj.weight"].type).endswith("[64, 32]")


def test_what_was_computed_for_another_target_is_not(ids: np.ndarray, tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "wide", "llama", num_hidden_layers=1, intermediate_size=1024)
    wide = irlab.run(irlab.load(str(directory)), "fuse")
    left = [
        sizes(run(wide, "prune-neurons{ratio=0.27}", ids, tmp_path, targets=targets)[0], "neurons")
        for targets in (("gguf",), ("onnx",), ("gguf",))
    ]
    assert left == [[768], [736], [768]]


def test_kv_heads_go_with_their_queries(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new, _ = run(module, "prune-heads{ratio=0.5}", ids, tmp_path)
    (attention, *_) = new.graph.find(nn.Attention)
    assert (attention.q.type.shape[1], attention.k.type.shape[1]) == (2, 1)
    plain, _ = run(module, "prune-heads{ratio=0.5 refit=false}", ids, tmp_path)
    assert loss(new, module, ids) < loss(plain, module, ids)


def test_query_heads_go_from_each_kv_head(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new, _ = run(module, "prune-heads{ratio=0.5 unit=query}", ids, tmp_path)
    (attention, *_) = new.graph.find(nn.Attention)
    assert (attention.q.type.shape[1], attention.k.type.shape[1]) == (2, 2)
    kept = [new.weights[f"model.layers.{i}.self_attn.q_proj.weight"].recipe.read() for i in range(3)]
    old = [module.weights[f"model.layers.{i}.self_attn.q_proj.weight"].recipe.read() for i in range(3)]
    for some, all_ in zip(kept, old):
        for kv in range(2):  # head kv of what is left is one of the two that read this kv head
            head = some[16 * kv : 16 * kv + 16]
            assert any(np.array_equal(head, all_[16 * h : 16 * h + 16]) for h in (2 * kv, 2 * kv + 1))


def test_layers_may_differ(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new, _ = run(module, "prune-neurons{ratio=0.25}@model.layers.1.mlp{ratio=0.5}", ids, tmp_path)
    assert sizes(new, "neurons") == [96, 64, 96]
    assert irlab.evaluate(new, {"input_ids": ids[:1]})["logits"].isfinite().all()


def test_global_allocation_takes_where_it_costs_least(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    weak = module.clone()
    name = "model.layers.1.mlp.down_proj.weight"
    symbol = weak.weights[name]
    tenth = (np.array(symbol.recipe.read()) / 100).astype(np.float32)
    replace_weights(weak.graph, {name: WeightSymbol(name, Array(symbol.type, tenth))})
    new, _ = run(weak, "prune-neurons{ratio=0.25 allocate=global multiple=16}", ids, tmp_path)
    first, second, third = sizes(new, "neurons")
    assert second < min(first, third) and first + second + third == 288


def test_bytes_and_speedups_as_targets(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    now = stored_bytes(module)
    new, _ = run(module, f"prune-neurons{{size={int(now * 0.9)} multiple=1}}", ids, tmp_path)
    assert 0.88 * now < stored_bytes(new) <= 0.905 * now
    faster, _ = run(module, "prune-neurons{speedup=1.2 multiple=1}", ids, tmp_path)
    assert stored_bytes(faster) == pytest.approx(now / 1.2, rel=0.02)
    with pytest.raises(InputError, match="10,000 bytes cannot be reached: at least"):
        run(module, "prune-neurons{size=10000}", ids, tmp_path)


def test_a_plan_reads_no_weight(module: Module) -> None:
    new = module.clone()
    context = Context(is_plan=True)
    for text in ("prune-neurons{ratio=0.25}", "prune-heads{ratio=0.5}", "drop-layers{count=1}"):
        PassManager(build_pipeline(text), context).run(new)
    verify(new)
    assert sizes(new, "neurons") == [96] * 2


def test_a_plan_of_widths_that_depend_on_scores_gives_bounds(module: Module) -> None:
    new = module.clone()
    PassManager(build_pipeline("prune-neurons{ratio=0.25 allocate=global}"), Context(is_plan=True)).run(new)
    (said,) = new.metadata["notes"]
    assert said == "prune-neurons: widths depend on scores: 32 to 128 in each layer; planned with 96 in all"


# What is refused


def test_numbers_that_are_not_finite(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    bad = module.clone()
    name = "model.layers.1.mlp.down_proj.weight"
    values = np.array(bad.weights[name].recipe.read())
    values[3, 5] = np.nan
    replace_weights(bad.graph, {name: WeightSymbol(name, Array(bad.weights[name].type, values))})
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp:neurons: the scores are not finite"):
        run(bad, "prune-neurons{ratio=0.25}", ids, tmp_path)
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp:neurons: the scores are not finite"):
        run(bad, "prune-neurons{ratio=0.25 score=magnitude refit=false}", ids, tmp_path)


def test_encoded_weights(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    encoded = irlab.run(module, "quantize{scheme=int4}")
    with pytest.raises(InputError, match=r"weight 'model\.layers\.0\.mlp\.\w+\.weight' is encoded already"):
        run(encoded, "prune-neurons{ratio=0.25}", ids, tmp_path)


def test_a_cache_keeps_its_heads(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    cached = irlab.run(module, "kv-cache")
    with pytest.raises(InputError, match=r"kv-heads stays at 2: the input 'past_key_values") as raised:
        run(cached, "prune-heads{ratio=0.5}", ids, tmp_path)
    assert raised.value.hint == "prune before kv-cache"
    with pytest.raises(UsageError, match="prune-heads"):
        build_pipeline("kv-cache,prune-heads{ratio=0.5}")


def test_a_weight_that_is_tied_to_an_output() -> None:
    """The rows of one matrix are neurons here and results there: they cannot go on one side."""
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", 8))
    up = b.random_weight("up", "f32", (12, 8))
    y = nn.linear(nn.gelu(nn.linear(x, up)), b.random_weight("down", "f32", (8, 12), seed=1))
    b.output(y=y, tied=nn.linear(y, up))
    with pytest.raises(InputError, match="stays at 12: the output 'tied' has it"):
        irlab.run(b.module(), "prune-neurons{ratio=0.25 score=magnitude refit=false}")


def test_a_graph_without_neurons() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", 8))
    b.output(y=prim.relu(x))
    with pytest.raises(InputError, match="prune-neurons: the graph has no neurons to prune"):
        irlab.run(b.module(), "prune-neurons{ratio=0.25 score=magnitude refit=false}")


@pytest.mark.parametrize("options", ["ratio=-0.1", "ratio=1.5", "speedup=0.5", "ratio=0.1 multiple=0"])
def test_options_that_make_no_sense(options: str) -> None:
    with pytest.raises(UsageError, match="prune-neurons"):
        build_pipeline(f"prune-neurons{{{options}}}")


def test_channels_of_a_convolutional_network() -> None:
    module = irlab.load("python:tests.convolutional:convolutional")
    new = irlab.run(module, "prune-channels{ratio=0.25}")
    verify(new)
    assert sizes(new, "channels") == [6, 3, 9]  # three are those of the image
    assert stored_bytes(new) < 0.7 * stored_bytes(module)
    image = np.random.default_rng(0).standard_normal((2, 3, 8, 8), "f4")
    assert irlab.evaluate(new, {"x": image})["output"].shape == (2, 5)
