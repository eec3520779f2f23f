"""quantize-activations: which activations are rounded, how, from what statistics, and for which targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

import irlab
from irlab import Context, GraphBuilder, Module
from irlab.calibration import Sample
from irlab.errors import InputError, LegalityError, UsageError
from irlab.ops import nn, prim
from irlab.passmgr import PassManager
from irlab.quality import quality
from irlab.schedule import build_pipeline


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 96, (8, 32))


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Module:
    return irlab.run(irlab.load(tiny_model(tmp_path_factory.mktemp("tiny"), "llama-tied")), "fuse")


def run(module: Module, pipeline: str, ids: np.ndarray, cache: Path, **more: object) -> tuple[Module, Context]:
    new, ctx = module.clone(), Context(calibration=Sample(ids, length=32), cache_dir=cache, **more)  # type: ignore[arg-type]
    PassManager(build_pipeline(pipeline), ctx).run(new)
    return new, ctx


def test_what_shares_an_input_shares_its_rounding(module: Module) -> None:
    new = irlab.run(module, "quantize-activations{embeddings=int8}")
    roundings = new.graph.find(nn.QuantizeActivation)
    # q, k, v together; o; gate and up together; down: in three layers, and the head.
    assert len(roundings) == 3 * 4 + 1
    assert all(isinstance(linear.x.op, nn.QuantizeActivation) for linear in new.graph.find(nn.Linear))
    assert {str(s.type.element) for s in new.weights.values() if s.type.rank == 2} == {
        "q<int8, sym, group=0, scale=f32>"
    }
    paths = {op.loc.path for op in roundings if op.loc}
    assert "model.layers.0.self_attn.q_proj" in paths or any("layers.0" in path for path in paths)


def test_a_head_of_floats_is_left_alone(module: Module) -> None:
    new = irlab.run(module, "quantize-activations")
    heads = [linear for linear in new.graph.find(nn.Linear) if linear.weight.type.encoding is None]
    assert len(heads) == 1 and not isinstance(heads[0].x.op, nn.QuantizeActivation)


def test_what_quantize_made_is_kept(module: Module) -> None:
    new = irlab.run(module, "quantize{scheme=int8 group=0 exclude=*.down_proj.*},quantize-activations{weights=none}")
    elements = {n.split(".")[-2]: str(s.type.element) for n, s in new.weights.items() if s.type.rank == 2}
    assert elements["down_proj"] == "f32" and elements["up_proj"] == "q<int8, sym, group=0, scale=f16>"


def test_layers_and_names_are_left_out(module: Module) -> None:
    pipeline = 'quantize-activations{exclude=*.o_proj.weight}@"model.layers.1"{scheme=none}'
    new = irlab.run(module, pipeline)
    rounded = {linear.weight.op.symbol.name for linear in new.graph.find(nn.Linear)  # type: ignore[union-attr]
               if isinstance(linear.x.op, nn.QuantizeActivation)}  # fmt: skip
    assert rounded and not any("layers.1." in name or "o_proj" in name for name in rounded)
    assert new.weights["model.layers.1.mlp.up_proj.weight"].type.encoding is None


@pytest.mark.parametrize(
    ("options", "attributes"),
    [
        ("", {"per": "token", "zero": 0, "scale": 0.0, "dynamic_zero": False}),
        ("per=tensor", {"per": "tensor", "dynamic_zero": True}),
        ("per=tensor sym=true", {"per": "tensor", "dynamic_zero": False}),
        ("sym=false", {"per": "token", "dynamic_zero": True}),
        ("per=tensor sym=false", {"per": "tensor", "dynamic_zero": True}),
    ],
)
def test_dynamic_forms(module: Module, options: str, attributes: dict[str, object]) -> None:
    new = irlab.run(module, f"quantize-activations{{{options}}}")
    op = new.graph.find(nn.QuantizeActivation)[0]
    assert {name: op.attributes[name] for name in attributes} == attributes


@pytest.mark.parametrize(
    ("options", "attributes", "matrices"),
    [
        ("scheme=fp8", {"element": "e4m3", "per": "token", "scale": 0.0}, "f<e4m3, group=0, scale=f32>"),
        ("scheme=fp8 per=tensor", {"element": "e4m3", "per": "tensor", "scale": 0.0}, "f<e4m3, group=0, scale=f32>"),
        ("scheme=fp8 weights=int8", {"element": "e4m3"}, "q<int8, sym, group=0, scale=f32>"),
    ],
)
def test_small_floats(module: Module, options: str, attributes: dict[str, object], matrices: str) -> None:
    new = irlab.run(module, f"quantize-activations{{{options}}}")
    op = new.graph.find(nn.QuantizeActivationFloat)[0]
    assert {name: op.attributes[name] for name in attributes} == attributes
    assert {str(s.type.element) for n, s in new.weights.items() if "_proj" in n} == {matrices}


@pytest.mark.parametrize(
    ("scheme", "largest", "matrices"),
    [("fp8", 448, "f<e4m3, group=tensor, scale=f32>"), ("nvfp4", 6 * 448, "f<e2m1, group=16, scale=e4m3>")],
)
def test_static_scales_of_floats_reach_the_largest_number(
    module: Module, ids: np.ndarray, tmp_path: Path, scheme: str, largest: float, matrices: str
) -> None:
    new, _ = run(module, f"quantize-activations{{scheme={scheme} mode=static}}", ids, tmp_path)
    graph = module.clone()
    # What no encoded matrix comes before.
    graph.graph.set_outputs({"x": graph.graph.find(nn.Linear)[0].x})
    found = float(irlab.evaluate(graph, {"input_ids": ids})["x"].abs().max())
    scales = [op.scale for op in new.graph.find(nn.QuantizeActivationFloat)]
    assert len(scales) == 12 and scales[0] == pytest.approx(found / largest, rel=1e-5)
    assert {str(s.type.element) for n, s in new.weights.items() if "_proj" in n} == {matrices}
    loss = quality(new, [{"input_ids": ids}], Context(), module).kl
    assert loss is not None and 0 < loss < (0.05 if scheme == "fp8" else 0.5)


def test_a_layer_may_have_another_scheme(module: Module) -> None:
    new = irlab.run(module, 'quantize-activations{scheme=fp8}@"model.layers.1"{scheme=int8}')
    assert len(new.graph.find(nn.QuantizeActivationFloat)) == 8 and len(new.graph.find(nn.QuantizeActivation)) == 4


def test_matrices_that_read_the_same_share_the_scale_of_the_tensor(module: Module) -> None:
    """And lose none of their range: it is that of the largest of them."""
    for pipeline, part in (("quantize{scheme=nvfp4}", "row_scales"), ("quantize{scheme=fp8 group=-1}", "scales")):
        new = irlab.run(module, pipeline)
        for names, count in ((("q", "k", "v"), 1), (("gate", "up"), 1), (("q", "o"), 2)):
            where = "mlp" if "up" in names else "self_attn"
            symbols = [new.weights[f"model.layers.0.{where}.{name}_proj.weight"] for name in names]
            assert len({float(s.recipe.codes(0, 1)[part][0, 0]) for s in symbols}) == count
            largest = max(abs(np.asarray(s.recipe.read())).max() for s in symbols)
            original = max(abs(module.weights[s.name].recipe.read()).max() for s in symbols)
            assert largest == pytest.approx(float(original), rel=0.07)


def test_mixed_has_one_scale_behind_norms_and_scales_of_tokens_elsewhere(module: Module) -> None:
    new = irlab.run(module, "quantize-activations{per=mixed embeddings=int8}")
    found = {(type(op.x.op) is nn.RMSNorm, op.per) for op in new.graph.find(nn.QuantizeActivation)}
    assert found == {(True, "tensor"), (False, "token")}


def encoder() -> Module:
    b = GraphBuilder("encoder")
    x = b.input("x", "f32", ("n", 32))
    inner = nn.gelu(nn.linear(x, b.random_weight("up", "f32", (64, 32), 1)))
    b.output(y=nn.linear(inner, b.random_weight("down", "f32", (32, 64), 2)))
    return b.module()


def zeros(module: Module) -> list[int]:
    return [op.zero for op in module.graph.find(nn.QuantizeActivation)]


def test_behind_gelu_zero_lies_near_the_lowest() -> None:
    assert sorted(zeros(irlab.run(encoder(), "quantize-activations"))) == [-112, 0]
    assert zeros(irlab.run(encoder(), "quantize-activations{sym=true}")) == [0, 0]


def test_static_scales_come_from_calibration(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new, ctx = run(module, "quantize-activations{mode=static range=max sym=true}", ids, tmp_path)
    graph = module.clone()
    head_input = graph.graph.find(nn.GatedMLP)[0].x
    graph.graph.set_outputs({"x": head_input})
    largest = float(irlab.evaluate(graph, {"input_ids": ids})["x"].abs().max())
    scales = [op.scale for op in new.graph.find(nn.QuantizeActivation)]
    assert any(scale == pytest.approx(largest / 127, rel=0.05) for scale in scales)
    errors = ctx.manager.records[-1].layers
    assert all(0 < found["input_error"] < 0.1 for found in errors.values()) and len(errors) == 12


@pytest.mark.parametrize("choice", ["max", "percentile", "mse"])
def test_static_and_dynamic_keep_the_model(module: Module, ids: np.ndarray, tmp_path: Path, choice: str) -> None:
    found, _ = run(module, f"quantize-activations{{mode=static range={choice} percentile=99.9}}", ids, tmp_path)
    loss = quality(found, [{"input_ids": ids}], Context(), module).kl
    dynamic = quality(irlab.run(module, "quantize-activations"), [{"input_ids": ids}], Context(), module).kl
    assert dynamic is not None and loss is not None and 0 < dynamic < 0.01 and dynamic < loss < 0.2


def test_the_text_says_what_is_rounded(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new, _ = run(module, "quantize-activations{mode=static}", ids, tmp_path)
    again = irlab.parse(str(irlab.run(new, "dce")))
    assert [op.attributes for op in again.graph.topo() if isinstance(op, nn.QuantizeActivation)] == [
        op.attributes for op in new.graph.topo() if isinstance(op, nn.QuantizeActivation)
    ]
    assert torch.equal(*(irlab.evaluate(m, {"input_ids": ids})["logits"] for m in (new, again)))


def test_every_target_must_hold_it(module: Module) -> None:
    with pytest.raises(InputError, match=r"gguf cannot hold it: llama\.cpp rounds activations itself.*without it"):
        irlab.run(module, "quantize-activations", targets=("onnx", "gguf"))
    with pytest.raises(InputError, match="hf cannot hold it: transformers computes"):
        irlab.run(module, "quantize-activations", targets=("hf",))
    for targets in (("onnx",), ("tensorrt",), ("onnx", "tensorrt"), ("ir",)):
        assert irlab.run(module, "quantize-activations", targets=targets).graph.find(nn.QuantizeActivation)


@pytest.mark.parametrize(("target", "reason"), [("gguf", "llama.cpp rounds activations"), ("hf", "in floats")])
def test_ir_that_is_rounded_already_is_refused_where_it_has_no_form(module: Module, target: str, reason: str) -> None:
    from irlab.registry import backend

    new = irlab.run(module, "quantize-activations")
    rows = backend(target)().plan(new)
    assert any(row.holding == "none" and reason in row.note for row in rows)
    with pytest.raises(LegalityError, match=reason):
        backend(target)().legalise(new.clone(), Context())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("mode=static per=token", "is not known beforehand"),
        ("percentile=20", "takes a number above 50 and at most 100"),
        ("mode=statik", "did you mean 'static'"),
        ("scheme=int4", "int8"),
        ("scheme=nvfp4", "known beforehand.*mode=static"),
        ("scheme=fp8 sym=false", "sym=false is of integers"),
        ("scheme=nvfp4 mode=static range=mse", "range=mse is of integers"),
    ],
)
def test_bad_options_are_refused(module: Module, options: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        irlab.run(module, f"quantize-activations{{{options}}}")


def test_static_needs_calibration_and_dynamic_does_not(module: Module) -> None:
    with pytest.raises(InputError, match="calibration data is needed"):
        irlab.run(module, "quantize-activations{mode=static}")


def test_a_graph_without_matrices_is_refused() -> None:
    b = GraphBuilder("none")
    b.output(y=prim.neg(b.input("x", "f32", (4,))))
    with pytest.raises(InputError, match="no linear layer"):
        irlab.run(b.module(), "quantize-activations")
    with pytest.raises(InputError, match="exclude=nope matches no weight"):
        irlab.run(encoder(), "quantize-activations{exclude=nope}")
