"""A graph cut into its layers: which ops go where, what crosses, and that the pieces compute what the whole does."""

from __future__ import annotations

import pytest
import torch

import irlab
from irlab import GraphBuilder, Module, nn, prim
from irlab.activations import Activations
from irlab.decoder import with_defaults
from irlab.dims import symbol
from irlab.interp import Program
from irlab.interp.torch_types import widened_dtype
from irlab.layers import layers
from irlab.types import f32, i64
from irlab.walk import Walk, tapped


def stack(numbered: bool = True) -> Module:
    """ids -> embedding -> two gated MLPs with residuals, all scaled by one value -> norm -> head."""
    b = GraphBuilder("stack")
    ids = b.input("input_ids", "i64", ("batch", "seq"))
    h = b.add(nn.embedding(ids, b.random_weight("embed", "f32", (24, 32), 1)), "embed")
    scale = b.add(
        prim.reshape(prim.cast(prim.add(ids, prim.constant(1, i64)), f32), (symbol("batch"), symbol("seq"), 1)), "scale"
    )
    for i in range(2):
        path = f"blocks.{i}.mlp" if numbered else f"block{'ab'[i]}.mlp"
        weights = [b.random_weight(f"{path}.{n}", "f32", (64, 32), 10 * i + k) for k, n in enumerate(("gate", "up"))]
        down = b.random_weight(f"{path}.down", "f32", (32, 64), 10 * i + 2)
        h = b.add(prim.add(h, prim.mul(nn.gated_mlp(prim.mul(h, scale), *weights, down), scale)), path)
    h = b.add(nn.rms_norm(h, b.random_weight("norm", "f32", (32,), 8)), "norm")
    b.output(logits=b.add(nn.linear(h, b.random_weight("head", "f32", (24, 32), 9)), "head"))
    return b.module()


def by_layers(module: Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs, computed piece by piece."""
    values: dict[str, torch.Tensor] = {"input_ids": ids}
    for layer in layers(module.graph):
        graph = layer.graph({**layer.gives, **layer.outputs})
        values |= Program(graph)({name: values[name] for name in layer.reads})
    return values


def test_numbers_in_paths_make_layers() -> None:
    found = layers(stack().graph)
    assert [layer.name for layer in found] == ["before", "blocks.0", "blocks.1", "after"]
    before, first, second, after = found
    assert list(first.reads) == ["before:0", "before:1"]
    assert list(second.reads) == ["blocks.0:0", "before:1"]
    assert list(first.weights) == ["blocks.0.mlp.gate", "blocks.0.mlp.up", "blocks.0.mlp.down"]
    assert list(after.outputs) == ["logits"] and not after.gives and not before.outputs


def test_a_graph_without_numbers_is_one_layer() -> None:
    (layer,) = layers(stack(numbered=False).graph)
    assert layer.name == "all" and list(layer.reads) == ["input_ids"] and list(layer.outputs) == ["logits"]


@pytest.mark.parametrize("numbered", [True, False])
def test_the_pieces_compute_what_the_whole_computes(numbered: bool) -> None:
    module = stack(numbered)
    ids = torch.randint(0, 24, (2, 5))
    whole = irlab.evaluate(module, {"input_ids": ids})["logits"]
    assert torch.equal(by_layers(module, ids)["logits"], whole)


@pytest.mark.parametrize("pipeline", ["fuse", "fuse,kv-cache", "fuse,fuse-qkv,fuse-residual-norm"])
def test_the_demo_model_in_pieces(pipeline: str) -> None:
    module = irlab.run(irlab.load("demo"), pipeline)
    ids = torch.randint(0, 1024, (2, 9))
    program = Program(module.graph, dtypes=widened_dtype)
    whole = program(with_defaults(module.graph, {"input_ids": ids}))["logits"]
    with Activations() as store:
        walk = Walk(module.graph, [{"input_ids": ids.numpy()}], "cpu", store)
        assert [layer.name for layer in walk.layers[1:-1]] == [f"model.layers.{i}" for i in range(4)]
        for layer in walk.layers[:-1]:
            list(walk.advance(layer))
        last = walk.layers[-1]
        (results,) = walk.outputs(last, last.graph(last.outputs))
    assert torch.equal(results["logits"], whole)


def test_names_of_crossing_values_survive_rewriting() -> None:
    module = stack()
    before = [list(layer.reads) for layer in layers(module.graph)]
    mlp = module.graph.find(nn.GatedMLP)[0]
    module.graph.replace(mlp, *mlp.decompose().op.results)
    assert [list(layer.reads) for layer in layers(module.graph)] == before


def test_every_matrix_of_a_layer_has_a_tap() -> None:
    piece = tapped(layers(stack().graph)[1])
    taps = {frozenset(name.rpartition(".")[2] for name in tap.weights) for tap in piece.taps}
    assert taps == {frozenset({"gate", "up"}), frozenset({"down"})}
