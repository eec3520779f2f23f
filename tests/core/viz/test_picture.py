"""Pictures: every op is a node of stable name, in the module it belongs to; equal layers are drawn once."""

from __future__ import annotations

import pytest
from layered_models import branching, layered

import irlab
from irlab import GraphBuilder, nn, prim
from irlab.viz import ROOT, Picture, collapse, fit, fold, inline_constants, picture_of
from irlab.viz.fold import ranges


def check(picture: Picture) -> None:
    """What holds for every picture: ends exist, order is topological, groups nest."""
    place = {name: number for number, name in enumerate(picture.nodes)}
    for edge in picture.edges:
        assert (place[edge.source] > place[edge.target]) == edge.carried
    for node in picture.nodes.values():
        assert node.group == ROOT or node.group in picture.groups
    for group in picture.groups.values():
        assert group.parent == ROOT or group.parent in picture.groups
        assert list(picture.inside(group.id)), f"{group.id} is empty"
    for target in picture.shown.values():
        assert target in picture.nodes or target in picture.groups


def test_every_op_weight_and_input_is_a_node_with_what_is_known_of_it() -> None:
    module = layered([0, 0])
    picture = picture_of(module)
    check(picture)
    assert len(picture.nodes) == len(module.graph) + len(module.graph.inputs)
    weight = picture.nodes["@model.layers.1.mlp.up.weight"]
    assert weight.weight is not None and weight.weight.element == "f32" and weight.bytes == 16 * 8 * 4
    assert weight.group == "model.layers.1.mlp.up"
    (mlp,) = [node for node in picture.members["model.layers.1.mlp"] if node.op == "nn.gated_mlp"]
    assert (mlp.family, mlp.path, mlp.parameters) == ("matmul", "model.layers.1.mlp", 3 * 16 * 8)
    (attention, *_) = [node for node in picture.nodes.values() if node.op == "nn.attention"]
    operands = {edge.operand: edge.type for edge in picture.edges if edge.target == attention.id}
    assert operands == dict.fromkeys("qkv", "f32[batch, 2, seq, 4]") | {"mask": "bool[batch, 1, 1, seq]"}


def test_names_survive_other_ops_being_rewritten() -> None:
    module = layered([0, 0])
    before = picture_of(module)
    assert list(picture_of(module.clone()).nodes) == list(before.nodes)
    norm = module.graph.find(nn.RMSNorm)[0]
    module.graph.replace(norm, prim.neg(norm.x), made_by="a-rule")
    after = picture_of(module)
    assert set(before.nodes) - set(after.nodes) == {f"nn.rms_norm:{norm.seq}", "@model.layers.0.norm.weight"}
    (new,) = set(after.nodes) - set(before.nodes)
    assert (after.nodes[new].op, after.nodes[new].made_by) == ("prim.neg", "a-rule")


def test_what_several_layers_share_belongs_to_none_of_them() -> None:
    picture = picture_of(layered([0, 0, 0]))
    (mask,) = [node for node in picture.nodes.values() if node.op == "prim.ne"]
    assert mask.path == "model.layers.0.attn" and mask.group == "model.layers"


@pytest.mark.parametrize("cached", [False, True])
def test_equal_layers_are_drawn_once(cached: bool) -> None:
    whole = picture_of(layered([0] * 5, cached=cached))
    folded = fold(whole)
    check(folded)
    assert {group.id: group.note for group in folded.groups.values() if group.note} == {
        "model.layers.0": "layers 1-4: same as layer 0"
    }
    assert folded.groups["model.layers.0"].folded == tuple(f"model.layers.{n}" for n in range(1, 5))
    assert folded.shown["model.layers.3.mlp"] == "model.layers.0.mlp"
    assert folded.shown["@model.layers.3.mlp.up.weight"] == "@model.layers.0.mlp.up.weight"
    if cached:
        assert folded.shown["%past.3.key"] == "%past.0.key"
    assert set(folded.nodes) | set(folded.shown) >= set(whole.nodes)
    assert any(edge.carried for edge in folded.edges)


def test_layers_that_differ_are_drawn_apart() -> None:
    notes = [g.note for g in fold(picture_of(layered([0, 4, 0, 4, 0, 8]))).groups.values() if g.note]
    assert notes == ["layers 2, 4: same as layer 0", "layer 3: same as layer 1"]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([4], "4"),
        ([1, 2, 3, 7], "1-3, 7"),
        ([7, 1, 3, 4, 5], "1, 3-5, 7"),
        ([2, 4, 6], "2, 4, 6"),
        ([2, 4, 6, 8, 9], "2, 4 ... 8, 9"),
    ],
)
def test_numbers_of_layers_are_told_briefly(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_layers_that_only_differ_in_how_values_flow_are_drawn_apart() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", (4,))
    for number in range(3):
        a, c = b.add(prim.exp(x), f"layers.{number}"), b.add(prim.neg(x), f"layers.{number}")
        x = b.add(prim.sub(a, c) if number != 1 else prim.sub(c, a), f"layers.{number}")
    b.output(y=x)
    assert [g.note for g in fold(picture_of(b.module())).groups.values() if g.note] == ["layer 2: same as layer 0"]


def test_lists_inside_layers_fold_too() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", 4))
    for layer in range(2):
        for expert in range(3):
            path = f"layers.{layer}.experts.{expert}"
            x = b.add(nn.silu(b.add(prim.neg(b.add(prim.exp(x), path)), path)), path)
    b.output(y=x)
    folded = fold(picture_of(b.module()))
    check(folded)
    assert [g.note for g in folded.groups.values() if g.note] == [
        "layer 1: same as layer 0",
        "experts 1-2: same as expert 0",
    ]
    assert folded.shown["layers.1.experts.2"] == "layers.0.experts.0"


def test_regions_are_nested_groups() -> None:
    picture = picture_of(branching())
    check(picture)
    (choice,) = [node for node in picture.nodes.values() if node.op == "ctl.if"]
    regions = {group.label: group for group in picture.groups.values() if group.kind == "region"}
    assert set(regions) == {"ctl.if", "then", "else"} and regions["then"].parent == choice.group
    assert {node.op for node in picture.inside(regions["then"].id)} == {"input", "prim.exp", "return"}
    assert any(edge.source == choice.id and edge.target.endswith("%x") for edge in picture.edges)


def test_groups_become_single_nodes_with_their_sums() -> None:
    whole = picture_of(layered([0, 4]))
    small = collapse(whole, {"model.layers.0.mlp", "model.layers.1"})
    check(small)
    mlp, layer = small.nodes["model.layers.0.mlp"], small.nodes["model.layers.1"]
    assert (mlp.family, mlp.parameters, mlp.bytes) == ("module", 3 * 16 * 8, 3 * 16 * 8 * 4)
    assert layer.parameters == 3 * 16 * 8 + 8 * 8 + 8
    assert small.shown["model.layers.1.mlp"] == "model.layers.1"
    assert "model.layers.1" not in small.groups


def test_a_large_picture_is_collapsed_until_it_fits() -> None:
    whole = picture_of(layered(range(1, 60)))
    small = fit(whole, 100)
    check(small)
    assert len(small.nodes) <= 100 and "one node each" in small.note
    assert fit(whole, 10_000) is whole


def test_constants_can_be_told_instead_of_drawn() -> None:
    picture = inline_constants(picture_of(layered([0])))
    check(picture)
    (mask,) = [node for node in picture.nodes.values() if node.op == "prim.ne"]
    assert mask.attributes == {"y": "0"} and all(node.op != "prim.constant" for node in picture.nodes.values())


def test_the_demo_folds() -> None:
    module = irlab.run(irlab.load("demo"), "fuse,kv-cache")
    folded = fold(picture_of(module))
    check(folded)
    assert folded.groups["model.layers.0"].note == "layers 1-3: same as layer 0"
