"""Options for some layers: what patterns name, how values are laid over others, what is refused."""

from __future__ import annotations

import pytest
from tiny_models import tiny_model

import irlab
from irlab.errors import InputError, UsageError
from irlab.ir import Module
from irlab.overlay import LayerPattern, expand_braces
from irlab.pipeline import parse_pipeline
from irlab.schedule import build_pipeline


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Module:
    return irlab.load(tiny_model(tmp_path_factory.mktemp("llama"), "llama"))


def elements(module: Module) -> dict[str, str]:
    return {name: str(symbol.type.element) for name, symbol in module.weights.items()}


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("a.b", ["a.b"]),
        ("l.{0..2}.x", ["l.0.x", "l.1.x", "l.2.x"]),
        ("{q,k}.{0..1}", ["q.0", "q.1", "k.0", "k.1"]),
        ("{9..10}", ["9", "10"]),
    ],
)
def test_braces_are_ranges_and_alternatives(pattern: str, expanded: list[str]) -> None:
    assert expand_braces(pattern) == expanded


@pytest.mark.parametrize(
    "pattern", ["{", "}", "a{b", "{3..1}", "{0..99999999999}", "{0..999}{0..999}", "{{a}", "{" * 50]
)
def test_bad_braces_are_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="layer pattern"):
        LayerPattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "name", "meant"),
    [
        ("model.layers.{0..3}.*", "model.layers.3.mlp.up_proj.weight", True),
        ("model.layers.{0..3}.*", "model.layers.30.mlp.up_proj.weight", False),
        ("model.layers.1", "model.layers.1.mlp.up_proj.weight", True),
        ("model.layers.1", "model.layers.10.mlp.up_proj.weight", False),
        ("*.{q,k}_proj", "model.layers.0.self_attn.q_proj.weight", True),
        ("*.{q,k}_proj", "model.layers.0.self_attn.v_proj.weight", False),
        ("lm_head.weight", "lm_head.weight", True),
        ("lm_head", "lm_head2.weight", False),
    ],
)
def test_patterns_name_weights_and_the_modules_they_lie_in(pattern: str, name: str, meant: bool) -> None:
    assert LayerPattern(pattern).matches(name) is meant


def test_quantize_takes_options_per_layer_and_the_last_row_wins(module: Module) -> None:
    text = 'fuse,quantize{scheme=int4}@"model.layers.*"{scheme=int8 sym=false}@"*.down_proj"{scheme=none}'
    found = elements(irlab.run(module, text))
    assert found["model.layers.0.self_attn.q_proj.weight"].startswith("q<int8, asym")
    assert found["model.layers.1.mlp.down_proj.weight"] == "f32"
    assert found["lm_head.weight"].startswith("q<int4, sym")


def test_the_text_of_a_pass_carries_its_layers() -> None:
    text = 'quantize{scheme=int8}@"model.layers.{0..3}.*"{scheme=int4 group=64}@lm_head{sym=false}'
    (step,) = build_pipeline(text)
    assert str(step) == text
    (again,) = build_pipeline(step.resolved_text())
    assert again == step and str(again) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantize@x{shceme=int8}", "did you mean 'scheme'"),
        ("quantize@x{scheme=int9}", "takes int2"),
        ("quantize@x{exclude=a}", "is one for all layers (per layer: scheme"),
        ("canonicalize@x{a=b}", "unknown option 'a' of canonicalize"),
        ("quantize@x", 'write @"model.layers.*"{a=b}'),
        ("quantize@{a=b}", "options for layers were expected"),
    ],
)
def test_what_cannot_be_said_per_layer_is_refused(text: str, message: str) -> None:
    with pytest.raises(irlab.IrlabError) as error:
        build_pipeline(text)
    assert message in str(error.value) and error.value.exit_status == 2


def test_a_pattern_that_matches_nothing_is_refused(module: Module) -> None:
    with pytest.raises(InputError, match=r"'model.layer.0' matches nothing \(did you mean 'model.layers.0"):
        irlab.run(module, "fuse,quantize@model.layer.0{scheme=int8}")
    with pytest.raises(InputError, match="matches nothing that quantize changes"):
        irlab.run(module, "fuse,quantize@model.norm{scheme=int8}")


def test_a_step_knows_its_layers() -> None:
    (step,) = parse_pipeline('a{b=c}@"x y"{d=e f=g}(h)')
    assert step.layers == (("x y", (("d", "e"), ("f", "g"))),) and step.body[0].name == "h"
