"""Mixtures of experts as GGUF: 3-D tensors of experts that the real llama.cpp runs; what it cannot say is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_models import MIXTURES

import irlab
from irlab import nn
from irlab.backends.gguf import GGUF
from irlab.errors import LegalityError
from irlab.ir import Module

pytestmark = pytest.mark.filterwarnings("ignore")

DOWN = "model.layers.1.mlp.experts.down_proj"


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("kind", MIXTURES)
def test_llama_cpp_computes_the_same_logits_and_tokens(
    kind: str, models: Callable[[str], Module], tmp_path: Path
) -> None:
    emitted = irlab.emit(models(kind), "gguf", tmp_path / "m.gguf", parity=True)
    assert emitted.parity.max_abs_logit_diff < 1e-4
    assert emitted.parity.greedy_equal
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    name = {"mixtral": "llama", "qwen3_moe": "qwen3moe"}[kind]
    experts, used = {"mixtral": (4, 2), "qwen3_moe": (8, 3)}[kind]
    assert reader.fields["general.architecture"].contents() == name
    assert reader.fields[f"{name}.expert_count"].contents() == experts
    assert reader.fields[f"{name}.expert_used_count"].contents() == used
    down = tensors(tmp_path / "m.gguf")["blk.1.ffn_down_exps.weight"]
    np.testing.assert_array_equal(down.data, models(kind).weights[DOWN].recipe.read())


@pytest.mark.parametrize(("scheme", "stored"), [("int4 group=32", "Q4_0"), ("int8 group=32", "Q8_0"), ("q4_0", "Q4_0")])
def test_codes_of_experts_are_repacked_code_for_code(
    scheme: str, stored: str, models: Callable[[str], Module], tmp_path: Path
) -> None:
    module = irlab.run(models("qwen3_moe"), f"quantize{{scheme={scheme}}}")
    emitted = irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=True)
    assert not emitted.parity.failure
    found = tensors(tmp_path / "m.gguf")
    down = found["blk.1.ffn_down_exps.weight"]
    assert down.tensor_type.name == stored
    decoded = gguf.dequantize(down.data, down.tensor_type)
    np.testing.assert_array_equal(decoded, module.weights[DOWN].recipe.read())
    assert found["blk.1.ffn_gate_inp.weight"].tensor_type.name == "F32"


@pytest.mark.parametrize("type_", ["f16", "q8_0", "q4_0"])
def test_file_types_hold_experts(type_: str, models: Callable[[str], Module], tmp_path: Path) -> None:
    emitted = irlab.emit(models("mixtral"), "gguf", tmp_path / "m.gguf", parity=True, type=type_, allow_fallback=True)
    assert not emitted.parity.failure
    assert tensors(tmp_path / "m.gguf")["blk.0.ffn_gate_exps.weight"].tensor_type.name == type_.upper()


def changed(module: Module, count: int, **attributes: object) -> Module:
    for op in module.graph.find(nn.MoE)[:count]:
        module.graph.replace(op, op.rebuild(op.operands, **attributes).result)
    return module


@pytest.mark.parametrize(
    ("count", "attributes", "message"),
    [
        (3, {"normalise": False}, "it divides the scores of experts by their sum, and layer 0 does not"),
        (3, {"activation": "gelu"}, "layer 0's activation is gelu"),
        (1, {"top_k": 1}, "layer 1 has 3 experts to a token where layer 0 has 1"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    count: int, attributes: dict[str, object], message: str, models: Callable[[str], Module], tmp_path: Path
) -> None:
    with pytest.raises(LegalityError, match=message):
        irlab.emit(changed(models("qwen3_moe"), count, **attributes), "gguf", tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_another_number_of_experts_to_a_token_changes_the_file(models: Callable[[str], Module], tmp_path: Path) -> None:
    module = changed(models("mixtral"), 3, top_k=1)
    emitted = irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=True)
    assert emitted.parity.max_abs_logit_diff < 1e-4
    field = gguf.GGUFReader(tmp_path / "m.gguf").fields["llama.expert_used_count"]
    assert field.contents() == 1


def test_the_plan_names_the_architecture(models: Callable[[str], Module]) -> None:
    rows = GGUF().plan(models("qwen3_moe"))
    assert rows[0].note == "architecture 'qwen3moe'"
