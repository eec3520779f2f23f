"""smooth-quant: the model stays to the last bit, activations become even, and what cannot be folded is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

import irlab
from irlab import Context, GraphBuilder, Module
from irlab.analysis import InputStatistics
from irlab.calibration import Sample
from irlab.collect import collect
from irlab.errors import InputError, UsageError
from irlab.floats import as_f32
from irlab.ir import Loc
from irlab.layers import layers
from irlab.ops import nn, prim
from irlab.passes.quantize.folds import folds
from irlab.passmgr import PassManager
from irlab.schedule import build_pipeline
from irlab.weight_uses import replace_weights
from irlab.weights import Array, WeightSymbol


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 96, (8, 32))


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Module:
    """A tiny model with a few channels behind norms that are thirty times the others, as large models have them."""
    directory = tiny_model(tmp_path_factory.mktemp("tiny"), request.param)
    module = irlab.run(irlab.load(directory), "fuse")
    changed = {}
    for name, symbol in module.weights.items():
        if "layernorm" in name:
            values = np.array(as_f32(symbol.recipe.read()))
            values[::16] *= 30
            changed[name] = WeightSymbol(name, Array(symbol.type, values))
    replace_weights(module.graph, changed)
    return module


def context(ids: np.ndarray, cache: Path) -> Context:
    return Context(calibration=Sample(ids, length=32), cache_dir=cache)


def run(module: Module, pipeline: str, ids: np.ndarray, cache: Path) -> Module:
    new = module.clone()
    PassManager(build_pipeline(pipeline), context(ids, cache)).run(new)
    return new


@pytest.mark.parametrize("alpha", ["0.5", "0.8", "search"])
def test_the_model_stays_to_the_last_bit(module: Module, ids: np.ndarray, tmp_path: Path, alpha: str) -> None:
    new = run(module, f"smooth-quant{{alpha={alpha}}}", ids, tmp_path)
    changed = [
        n for n, s in new.weights.items() if not np.array_equal(s.recipe.read(), module.weights[n].recipe.read())
    ]
    assert any("layernorm" in n for n in changed) and any("down_proj" in n for n in changed)
    before, after = (irlab.evaluate(m, {"input_ids": ids})["logits"] for m in (module, new))
    assert torch.equal(before, after)


def test_outliers_move_into_weights(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def unevenness(m: Module) -> tuple[float, float]:
        """How much the largest channel exceeds the middle one: of inputs and of weights."""
        ctx = context(ids, tmp_path)
        inputs = collect(InputStatistics, m, ctx)[name].max_abs
        columns = np.abs(as_f32(m.weights[name].recipe.read())).max(0)
        return float(inputs.max() / np.median(inputs)), float(columns.max() / np.median(columns))

    before, after = unevenness(module), unevenness(run(module, "smooth-quant{alpha=0.5}", ids, tmp_path))
    assert before[0] > 20 and after[0] < before[0] / 3 and after[1] > before[1]
    # All of the difficulty: inputs are even, up to powers of two.
    assert unevenness(run(module, "smooth-quant{alpha=1}", ids, tmp_path))[0] < 2.9


def test_rounded_activations_lose_less(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    rounding = "quantize-activations{per=tensor sym=true}"

    def error(m: Module) -> float:
        found, wanted = (irlab.evaluate(x, {"input_ids": ids})["logits"] for x in (m, module))
        return float((found - wanted).square().mean())

    plain = error(irlab.run(module, rounding))
    for alpha in ("0.5", "search"):
        assert error(run(module, f"smooth-quant{{alpha={alpha}}},{rounding}", ids, tmp_path)) < 0.5 * plain


def test_statistics_follow_for_passes_of_the_same_sweep(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    """gptq sees the Hessian of the inputs as they are after smoothing: as if it had been collected then."""
    together = run(module, "smooth-quant,quantize{method=gptq group=0 scheme=int8}", ids, tmp_path / "a")
    apart = run(module, "smooth-quant,cse,quantize{method=gptq group=0 scheme=int8}", ids, tmp_path / "b")
    # Later layers see what gptq made of the ones before.
    first = [name for name in together.weights if "layers.0." in name]
    assert len(first) > 6
    for name in first:
        a, b = (as_f32(m.weights[name].recipe.read()) for m in (together, apart))
        np.testing.assert_allclose(a, b, atol=np.abs(b).max() / 100, err_msg=name)


def bert_block() -> Module:
    """A block of an encoder, whose norm is read by a matrix and by the residual stream."""
    b = GraphBuilder("block")
    x = b.input("x", "f32", ("n", "seq", 32))
    norm = [
        b.random_weight(f"layers.0.norm.{part}", "f32", (32,), seed) for seed, part in enumerate(("weight", "bias"))
    ]
    h = nn.layer_norm(x, *norm)
    inner = nn.gelu(nn.linear(h, b.random_weight("layers.0.up.weight", "f32", (64, 32), 3)))
    b.output(y=prim.add(h, nn.linear(inner, b.random_weight("layers.0.down.weight", "f32", (32, 64), 4))))
    return b.module()


def test_a_norm_that_the_residual_reads_is_copied(tmp_path: Path) -> None:
    module = bert_block()
    x = np.random.default_rng(0).normal(size=(4, 64, 32)).astype(np.float32)

    def smoothed(options: str) -> Module:
        new = module.clone()
        ctx = Context(calibration=Sample({"x": x}), cache_dir=tmp_path)
        PassManager(build_pipeline(f"smooth-quant{options}"), ctx).run(new)
        return new

    new = smoothed("")
    assert len(new.graph.find(nn.LayerNorm)) == 2 and "layers.0.norm.weight.smooth" in new.weights
    assert not np.array_equal(*(new.weights[f"layers.0.norm.weight{end}"].recipe.read() for end in ("", ".smooth")))
    assert len(folds(layers(new.graph)[0])) == 1
    assert torch.equal(*(irlab.evaluate(m, {"x": x})["y"] for m in (module, new)))
    assert len(smoothed("{copy-norms=false}").graph.find(nn.LayerNorm)) == 1


def test_half_types_keep_their_numbers() -> None:
    """Where a column would leave the range of f16, its channel is left alone."""
    from irlab.passes.quantize.folds import Fold
    from irlab.passes.quantize.smooth import Scaling

    fold = Fold(("w",), ("n",), np.arange(3))
    values = {"w": np.array([[1.0, 4e4, 1e-4]], np.float32), "n": np.array([1.0, 1.0, 1.0], np.float32)}
    scaling = Scaling(fold, values, {name: np.dtype(np.float16) for name in values})
    values["w"] = values["w"].astype(np.float16).astype(np.float32)
    assert scaling.exact(np.array([4.0, 4.0, 2.0**-12])).tolist() == [4.0, 1.0, 1.0]
    wide = Scaling(fold, values, {name: np.dtype(np.float32) for name in values})
    assert wide.exact(np.array([4.0, 4.0, 2.0**-12])).tolist() == [4.0, 4.0, 2.0**-12]


def test_encoded_weights_are_refused(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is encoded \(run smooth-quant before quantize\)"):
        run(irlab.run(module, "quantize{scheme=int8}"), "smooth-quant", ids, tmp_path)


@pytest.mark.parametrize("pipeline", ["quantize-activations", "quantize", "mixed-precision{bpw=5}"])
def test_a_wrong_order_is_refused(module: Module, pipeline: str) -> None:
    with pytest.raises(UsageError, match="smooth-quant cannot run after"):
        irlab.run(module, f"{pipeline},smooth-quant")


def test_options_are_checked(module: Module) -> None:
    with pytest.raises(UsageError, match="takes a number from 0 to 1 or search"):
        irlab.run(module, "smooth-quant{alpha=1.5}")
    with pytest.raises(UsageError, match="search"):
        irlab.run(module, "smooth-quant{alpha=serch}")
    with pytest.raises(InputError, match="needs calibration data"):
        irlab.run(module, "smooth-quant")


def test_the_copy_of_a_norm_belongs_to_the_layer_that_reads_it(tmp_path: Path) -> None:
    """In BERT the norm at the end of a layer is read by the matrices of the next one."""
    b = GraphBuilder("two")
    x = b.input("x", "f32", ("n", "seq", 32))
    norm = b.random_weight("layers.0.norm.weight", "f32", (32,), 5)
    h = nn.layer_norm(x, norm)
    h.op.loc = Loc.at("layers.0.norm")  # type: ignore[union-attr]
    y = nn.linear(h, b.random_weight("layers.1.up.weight", "f32", (32, 32), 3))
    y.op.loc = Loc.at("layers.1.up")  # type: ignore[union-attr]
    b.output(y=prim.add(h, y))
    module = b.module()
    given = np.random.default_rng(0).normal(size=(4, 64, 32)).astype(np.float32)
    new = module.clone()
    ctx = Context(calibration=Sample({"x": given}), cache_dir=tmp_path)
    PassManager(build_pipeline("smooth-quant"), ctx).run(new)
    before, after = (m.weights["layers.1.up.weight"].recipe.read() for m in (module, new))
    assert not np.array_equal(before, after)
    assert torch.equal(*(irlab.evaluate(m, {"x": given})["y"] for m in (module, new)))
