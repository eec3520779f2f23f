"""Which axes move together, and does a graph that loses indices compute what it would with zeros in their place?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import irlab
from irlab import GraphBuilder, Module, Value, nn, prim
from irlab.axes import AxisAnalysis, coordinates, describe_groups, keep
from irlab.errors import InputError
from irlab.ir import expression
from irlab.ops import control
from irlab.ops.nn import NNOp
from irlab.types import TensorType
from irlab.verify import verify
from irlab.weight_uses import replace_weights
from irlab.weights import Array, Concat, Take, WeightSymbol
from tests.tiny_models import tiny_model


def groups(module: Module, role: str = "") -> dict[str, int]:
    return {n: g.size for n, g in AxisAnalysis(module.graph).groups.items() if role in ("", g.role)}


def with_zeros(module: Module, name: str, kept: np.ndarray) -> Module:
    """`module` with zeros in its weights where they read what is not kept of a group."""
    axes = AxisAnalysis(module.graph)
    group, symbols = axes.groups[name], {}
    for place in group.places:
        if place.reads:
            symbol = module.weights[place.weight]
            at = coordinates(axes.of_weight(place.weight)[place.axis], group.leaf)
            values = np.moveaxis(np.array(symbol.recipe.read()), place.axis, 0)
            values[(at >= 0) & ~np.isin(at, kept)] = 0
            values = np.ascontiguousarray(np.moveaxis(values, 0, place.axis))
            symbols[symbol.name] = WeightSymbol(symbol.name, Array(symbol.type, values))
    zeroed = module.clone()
    replace_weights(zeroed.graph, symbols)
    return zeroed


def random_inputs(module: Module) -> dict[str, Any]:
    random = np.random.default_rng(1)
    sizes = {"batch": 2, "seq": 5, "past + seq": 5, "past": 0}
    inputs = {}
    for value in module.graph.inputs:
        shape = [size if isinstance(size, int) else sizes[str(size)] for size in value.type.shape]
        is_ids = value.type.dtype.is_int
        inputs[value.name or ""] = random.integers(1, 90, shape) if is_ids else random.standard_normal(shape, "f4")
        if value.name in ("attention_mask", "position_ids"):
            inputs[value.name] = np.ones(shape, np.int64)
    return inputs


def assert_all_groups_can_be_cut(module: Module) -> int:
    """Cut each group that is free to a half; the result is that of zeros in its place. Gives how many there were."""
    found = 0
    for name, group in AxisAnalysis(module.graph).groups.items():
        if group.fixed or group.mixed or not group.is_read_and_written:
            continue
        kept = np.sort(np.random.default_rng(0).permutation(group.size)[: group.size // 2])
        cut = module.clone()
        keep(cut.graph, {name: kept})
        verify(cut)
        inputs = random_inputs(module)
        expected, actual = (irlab.evaluate(m, inputs) for m in (with_zeros(module, name, kept), cut))
        for output in expected:
            np.testing.assert_allclose(actual[output].numpy(), expected[output].numpy(), atol=2e-5, err_msg=name)
        assert stored(cut) < stored(module)
        found += 1
    return found


def stored(module: Module) -> int:
    return sum(symbol.size_bytes for symbol in module.weights.values())


@pytest.mark.parametrize("pipeline", ["", "fuse", "fuse,fuse-qkv,fuse-gate-up", "fuse,kv-cache", "decompose"])
def test_a_llama_at_every_level(tmp_path: Path, pipeline: str) -> None:
    module = irlab.load(str(tiny_model(tmp_path, "llama", num_hidden_layers=1)))
    module = irlab.run(module, pipeline) if pipeline else module
    found = assert_all_groups_can_be_cut(module)
    # kv heads, query heads, features of values, neurons; a cache fixes its heads; spelled out, attention mixes them.
    assert found >= {"fuse,kv-cache": 2, "decompose": 1}.get(pipeline, 4)


def test_the_axes_of_a_llama(tmp_path: Path) -> None:
    module = irlab.run(irlab.load(str(tiny_model(tmp_path, "llama-tied"))), "fuse")
    assert groups(module, "neurons") == {f"model.layers.{i}.mlp:neurons": 128 for i in range(3)}
    assert groups(module, "kv heads") == {f"model.layers.{i}.self_attn:kv-heads": 2 for i in range(3)}
    assert groups(module, "query heads") == {f"model.layers.{i}.self_attn:query-heads": 2 for i in range(3)}
    assert groups(module, "features") == {"model:features": 64}
    vocabulary = AxisAnalysis(module.graph).groups["model.embed_tokens:ids"]
    assert vocabulary.fixed == ("indexed", "the output 'logits' has it")
    frequencies = AxisAnalysis(module.graph).groups["model:head-features"]
    assert frequencies.size == 8  # pairs: half of a head
    assert {place.weight.split(".")[-2] for place in frequencies.places} == {"rotary_emb", "q_proj", "k_proj"}


def test_what_is_said(tmp_path: Path) -> None:
    module = irlab.run(irlab.load(str(tiny_model(tmp_path, "llama"))), "fuse")
    text = describe_groups(AxisAnalysis(module.graph), ["neurons", "ids"])
    weights = ", ".join(f"model.layers.*.mlp.{name}_proj.weight:{axis}" for name, axis in [("gate", 0), ("up", 0)])
    assert f"3 x 128 neurons: {weights}, model.layers.*.mlp.down_proj.weight:1" in text
    assert "96 ids: model.embed_tokens.weight:0\n    stays: indexed" in text


def test_heads_of_one_matrix_in_thirds() -> None:
    """As GPT-NeoX has it: for each head q, k and v side by side."""
    b = GraphBuilder()
    x = b.input("x", "f32", ("batch", "seq", 12))
    qkv = nn.linear(x, b.random_weight("qkv", "f32", (36, 12)))
    heads = prim.transpose(prim.reshape(qkv, (*x.type.shape[:2], 3, 12)), (0, 2, 1, 3))
    q, k, v = prim.split(heads, (4, 4, 4), -1)
    out = prim.reshape(prim.transpose(nn.attention(q, k, v), (0, 2, 1, 3)), x.type.shape)
    b.output(y=nn.linear(out, b.random_weight("o", "f32", (12, 12), seed=1)))
    module = b.module()
    assert groups(module, "kv heads") == {"model:kv-heads": 3}
    assert assert_all_groups_can_be_cut(module) == 2


def test_convolutions_with_batch_norm_and_channels_of_their_own() -> None:
    module = irlab.load("python:tests.convolutional:convolutional")
    assert groups(module, "channels") == {"model:channels": 8, "first:channels": 3, "model:channels-2": 12}
    assert assert_all_groups_can_be_cut(module) == 2


class Doubled(NNOp, opname="test.doubled_relu"):
    """2 relu(x): an op without a rule."""

    x: Value

    def infer(self) -> TensorType:
        return self.x.type

    def decompose(self) -> Value:
        return prim.add(prim.relu(self.x), prim.relu(self.x))


def two_layers(between: Any) -> Module:
    b = GraphBuilder()
    x = b.input("x", "f32", ("batch", 4))
    h = between(nn.linear(x, b.random_weight("up", "f32", (6, 4))))
    b.output(y=nn.linear(h, b.random_weight("down", "f32", (4, 6), seed=1)))
    return b.module()


def test_an_op_without_a_rule_goes_by_its_meaning() -> None:
    module = two_layers(expression(Doubled))
    assert groups(module, "neurons") == {"model:neurons": 6}
    assert assert_all_groups_can_be_cut(module) == 1


def test_an_index_that_counts_fixes_its_axis() -> None:
    def between(h: Value) -> Value:
        return prim.cumsum(prim.relu(h), -1)

    module = two_layers(between)
    (group,) = [g for g in AxisAnalysis(module.graph).groups.values() if g.size == 6]
    assert group.fixed == ("summed in order",)
    with pytest.raises(InputError, match="cannot be pruned: summed in order"):
        keep(module.graph, {group.name: [0, 1]})


def test_regions_are_cut_with_the_graph() -> None:
    b = GraphBuilder()
    x, flag = b.input("x", "f32", ("batch", 4)), b.input("flag", "bool", ())
    h = nn.linear(x, b.random_weight("up", "f32", (6, 4)))
    branches = []
    for make in (prim.relu, prim.neg):
        inner = GraphBuilder()
        inner.output(y=make(inner.input("h", "f32", ("batch", 6))))
        branches.append(inner.module().graph)
    (y,) = control.if_(flag, (h,), *branches)
    b.output(y=nn.linear(y, b.random_weight("down", "f32", (4, 6), seed=1)))
    module = b.module()
    kept = np.array([0, 2, 5])
    expected = with_zeros(module, "model:neurons", kept)
    keep(module.graph, {"model:neurons": kept})
    verify(module)
    for flag_value in (True, False):
        inputs = {"x": np.ones((2, 4), "f4"), "flag": np.array(flag_value)}
        a, e = (irlab.evaluate(m, inputs)["y"].numpy() for m in (module, expected))
        np.testing.assert_allclose(a, e, atol=1e-6)


@pytest.mark.parametrize(
    ("indices", "message"),
    [([], "nothing of its 6 would be left"), ([1, 0], "ascending"), ([0, 6], "ascending order below 6")],
)
def test_indices_that_cannot_be_kept(indices: list[int], message: str) -> None:
    module = two_layers(prim.relu)
    with pytest.raises(InputError, match=message):
        keep(module.graph, {"model:neurons": indices})


def test_what_every_second_index_of_an_odd_axis_is_stays_as_it_is() -> None:
    b = GraphBuilder()
    taken = prim.slice(b.input("x", "f32", (2, 5)), -1, 0, 5, 2)
    b.output(y=nn.rms_norm(taken, b.random_weight("gain", "f32", (3,))))
    assert AxisAnalysis(b.module().graph).of(taken)[-1].fixed


def test_take_along_any_axis() -> None:
    b = GraphBuilder()
    weight = b.random_weight("w", "f32", (4, 6)).op
    recipe = weight.symbol.recipe  # type: ignore[union-attr]
    values = recipe.read()
    np.testing.assert_array_equal(Take(recipe, (1, 4), 1).read(), values[:, [1, 4]])
    np.testing.assert_array_equal(Take(Concat((recipe, recipe)), (5, 0), 0).read(), values[[1, 0]])
    np.testing.assert_array_equal(Take(recipe, (1, 4), 1).rows(2, 3), values[2:3, [1, 4]])
