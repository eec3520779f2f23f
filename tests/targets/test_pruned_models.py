"""Pruned models deploy: by one recipe of six passes to GGUF and ONNX, and for every family whose layers may differ."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_models import tiny_model

import irlab
from irlab.axes import AxisAnalysis
from irlab.cli import main
from irlab.errors import UsageError
from irlab.ir import Module
from irlab.schedule import build_pipeline

RECIPE = (
    "fuse,drop-layers{indices=2},"
    'prune-neurons{ratio=0.25}@"*layers.1.*"{ratio=0.5},'
    'prune-heads{ratio=0.5}@"*layers.0.*"{ratio=0},'
    "quantize{scheme=int4 group=32 method=gptq},kv-cache"
)
"""Layers that differ in heads and widths, in whole blocks of 32."""


def test_one_recipe_reaches_gguf_and_onnx_with_one_report(tmp_path: Path) -> None:
    ids = tmp_path / "ids.npy"
    np.save(ids, np.random.default_rng(0).integers(5, 1000, 512))
    out, directory, report = tmp_path / "m.gguf", tmp_path / "onnx", tmp_path / "report.json"
    args = ["demo", "-p", RECIPE, "--emit", "gguf", "-o", str(out), "--emit", "onnx", "-o", str(directory)]
    args += ["--calibration", str(ids), "--calibration-length", "64", "--report", str(report), "-q"]
    assert main(args) == 0
    found = json.loads(report.read_text())
    for name in (str(out), str(directory)):
        parity = found["parity"][name]
        assert not parity["skipped"] and not parity["failure"] and 0 < parity["kl"] < 0.05
    ran = {step["name"]: step for step in found["passes"]}
    assert {"fuse", "drop-layers", "prune-neurons", "prune-heads", "quantize", "kv-cache"} <= ran.keys()
    assert ran["drop-layers"]["bytes_after"] < 0.8 * ran["drop-layers"]["bytes_before"]
    assert found["bytes"][str(out)] < 0.25 * ran["fuse"]["bytes_before"]
    keys = gguf.GGUFReader(out).fields
    assert keys["deci.attention.head_count_kv"].contents() == [2, 1, 1]
    assert keys["deci.feed_forward_length"].contents() == [576, 384, 576]
    decoder = json.loads((directory / "genai_config.json").read_text())["model"]["decoder"]
    assert (decoder["num_hidden_layers"], decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (3, 4, 2)


MAGNITUDE = "score=magnitude refit=false"
BY_LAYER = f'fuse,prune-heads{{ratio=0.5 {MAGNITUDE}}}@"*layers.1.*"{{ratio=0}},'
BY_LAYER += f'prune-neurons{{ratio=0.25 multiple=32 {MAGNITUDE}}}@"*layers.2.*"{{ratio=0.5}}'
ALIKE = f"fuse,prune-heads{{ratio=0.5 {MAGNITUDE}}},prune-neurons{{ratio=0.25 multiple=32 {MAGNITUDE}}}"


def pruned(kind: str, pipeline: str, directory: Path) -> Module:
    return irlab.run(irlab.load(tiny_model(directory, kind)), pipeline)


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("llama", "deci"),
        ("llama3", "deci"),
        ("llama-biased", "deci"),
        ("mistral", "deci"),
        ("qwen2", "deci"),
        ("qwen3-tied", "openelm"),
    ],
)
def test_families_whose_layers_may_differ(kind: str, architecture: str, tmp_path: Path) -> None:
    module = pruned(kind, BY_LAYER, tmp_path / "model")
    emitted = irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=True)
    assert emitted.parity.max_abs_logit_diff < 1e-3 and emitted.parity.greedy_equal
    keys = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert keys["general.architecture"].contents() == architecture
    assert keys[f"{architecture}.attention.head_count"].contents() == [2, 4, 2]
    assert keys[f"{architecture}.feed_forward_length"].contents() == [96, 96, 64]
    cached = irlab.run(module, "kv-cache")
    onnx = irlab.emit(cached, "onnx", tmp_path / "onnx", parity=True)
    assert onnx.parity.max_abs_logit_diff < 1e-3 and onnx.parity.greedy_equal


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "smollm3"])
def test_models_that_are_pruned_alike_keep_their_architecture(kind: str, tmp_path: Path) -> None:
    module = pruned(kind, ALIKE, tmp_path / "model")
    emitted = irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=True)
    assert emitted.parity.max_abs_logit_diff < 1e-3 and emitted.parity.greedy_equal
    found = gguf.GGUFReader(tmp_path / "m.gguf").fields["general.architecture"].contents()
    assert found == {"mistral": "llama"}.get(kind, kind)
    hf = irlab.emit(module, "hf", tmp_path / "hf", parity=True)
    assert hf.parity.greedy_equal


def test_caches_are_counted_anew_where_layers_were_dropped(tmp_path: Path) -> None:
    module = pruned("llama", "fuse,drop-layers{indices=1},kv-cache", tmp_path / "model")
    names = {value.name for value in module.graph.inputs}
    assert "past_key_values.1.key" in names and "past_key_values.2.key" not in names
    emitted = irlab.emit(module, "onnx", tmp_path / "onnx", parity=True, layout="genai")
    assert emitted.parity.greedy_equal
    assert irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=True).parity.greedy_equal


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        ("fuse,quantize{scheme=int4},prune-neurons{ratio=0.25}", "prune-neurons cannot run after quantize"),
        ("fuse,quantize{scheme=int4},prune-heads{ratio=0.25}", "prune-heads cannot run after quantize"),
        ("fuse,quantize{scheme=int4},drop-layers{indices=1}", "drop-layers cannot run after quantize"),
        ("kv-cache,prune-heads{ratio=0.25}", "prune-heads cannot run after kv-cache"),
        ("kv-cache,drop-layers{indices=1}", "drop-layers cannot run after kv-cache"),
        ("fuse,prune-heads{ratio=0.5},decompose,kv-cache", "kv-cache cannot run after decompose"),
    ],
)
def test_orders_that_cannot_work_are_refused_before_anything_is_computed(pipeline: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        build_pipeline(pipeline)


def test_a_large_model_is_planned_without_a_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There are none: only config.json, with the widths of Llama 3 70B and a tenth of its layers."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 8,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = 'fuse,drop-layers{indices=4},prune-neurons{ratio=0.25}@"*layers.{0..2}.*"{ratio=0.125},'
    recipe += "prune-heads{ratio=0.25},quantize{scheme=q4_k}"
    args = [str(tmp_path), "-p", recipe, "--plan", "--emit", "gguf", "-o", str(tmp_path / "x.gguf")]
    assert main(args) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "A architecture 'deci'" in said and "21504 feed-forward neurons where layer 0 has 25088" in said
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_groups_are_found_again_in_what_was_pruned(tmp_path: Path) -> None:
    """A second pass sees the widths that the first has left."""
    module = pruned("llama", BY_LAYER, tmp_path / "model")
    sizes = [g.size for g in AxisAnalysis(module.graph).groups.values() if g.role == "neurons"]
    assert sizes == [96, 96, 64]
