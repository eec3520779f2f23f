"""What is written is what transformers loads: names, numbers, shards, companions; whole or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_models import ARCHITECTURES, Checkpoint, Lifted, hf_logits
from safetensors.torch import load_file

import irlab
from irlab.backends.hf import HF
from irlab.backends.hf.transformers_runtime import Transformers
from irlab.emission import emit_with
from irlab.encodings import IntegerEncoding
from irlab.errors import CheckError, InputError
from irlab.ir import Module
from irlab.passmgr import Context
from irlab.weight_uses import replace_weights
from irlab.weights import Array, Readings, WeightSymbol, as_f32

IDS = [5, 17, 3, 88, 41, 2, 63, 9, 30, 71]
INDEX = "model.safetensors.index.json"


def same_tensors(a: Path, b: Path) -> bool:
    mine, theirs = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype is theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine
    )


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_round_trip_is_bit_identical(
    kind: str, tied: bool, checkpoint: Checkpoint, lifted: Lifted, tmp_path: Path
) -> None:
    source = checkpoint(kind, tie_word_embeddings=tied)
    module = irlab.run(lifted(kind, tie_word_embeddings=tied), "fuse,kv-cache")
    out = tmp_path / "out"
    irlab.emit(module, "hf", out, parity=False)
    assert same_tensors(out, source)
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) is not tied
    for file in ("config.json", "generation_config.json"):
        assert json.loads((out / file).read_text()) == json.loads((source / file).read_text())
    assert torch.equal(hf_logits(out, IDS), hf_logits(source, IDS))


def test_half_precision_stays_as_it_is(checkpoint: Checkpoint, lifted: Lifted, tmp_path: Path) -> None:
    source = checkpoint("llama", dtype="bfloat16")
    emitted = irlab.emit(lifted("llama", dtype="bfloat16"), "hf", tmp_path / "out", parity=True)
    assert same_tensors(tmp_path / "out", source)
    assert emitted.parity.runtime == "transformers" and emitted.parity.max_abs_logit_diff <= 5e-2


def test_cast_changes_the_stored_dtype(lifted: Lifted, tmp_path: Path) -> None:
    irlab.emit(irlab.run(lifted("qwen2"), "cast{dtype=bf16}"), "hf", tmp_path / "out", parity=False)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoded_weights_hold_what_the_codes_stand_for(
    dtype: str, checkpoint: Checkpoint, lifted: Lifted, tmp_path: Path
) -> None:
    source = checkpoint("smollm3", dtype=dtype, tie_word_embeddings=True)
    lift = lifted("smollm3", dtype=dtype, tie_word_embeddings=True)
    module = irlab.run(lift, "fuse,quantize{scheme=int4 group=32 embeddings=int8},kv-cache")
    emitted = irlab.emit(module, "hf", tmp_path / "out", parity=True)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    for name, numbers in before.items():
        if numbers.dim() == 2:
            encoding = IntegerEncoding(8 if "embed" in name else 4)
            decoded = encoding.decode(encoding.encode(numbers.float().numpy()))
            assert torch.equal(after[name], torch.from_numpy(decoded).to(numbers.dtype)), name
            assert not torch.equal(after[name], numbers)
        else:
            assert torch.equal(after[name], numbers)
    assert emitted.parity.greedy_equal
    card = (tmp_path / "out/README.md").read_text()
    assert "14 of its weights were encoded as `q<int4, sym, group=32, scale=f16>`" in card


def test_shards(checkpoint: Checkpoint, lifted: Lifted, tmp_path: Path) -> None:
    out = tmp_path / "out"
    irlab.emit(lifted("llama"), "hf{shard=20KB}", out, parity=False)
    index = json.loads((out / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert sorted(p.name for p in out.glob("*.safetensors")) == files
    found = {}
    for file in files:
        tensors = load_file(out / file)
        assert all(index["weight_map"][name] == file for name in tensors)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000
        found.update(tensors)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    whole = load_file(checkpoint("llama") / "model.safetensors")
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    assert torch.equal(hf_logits(out, IDS), hf_logits(checkpoint("llama"), IDS))
    # What was written can be read again.
    assert irlab.load(out).weights.keys() == lifted("llama").weights.keys()


def test_companions_travel(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint("llama"), source)
    files = {
        "tokenizer.json": '{"version": "1.0"}',
        "tokenizer_config.json": '{"model_max_length": 128}',
        "chat_template.jinja": "{{ messages }}",
        "additional_chat_templates/tools.jinja": "{{ tools }}",
        "LICENSE.txt": "Do as you like.",
    }
    for name, text in files.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    (source / "secret.txt").write_text("not part of the model")
    (source / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: [someone/base]\n---\n# A model\n")
    irlab.emit(irlab.load(source), "hf", tmp_path / "out", parity=False)
    for name, text in files.items():
        assert (tmp_path / "out" / name).read_text() == text
    assert not (tmp_path / "out/secret.txt").exists()
    card = irlab.load(tmp_path / "out").metadata
    assert card["licence"] == "apache-2.0" and card["base_model"] == ["someone/base"]


def test_a_tokenizer_that_has_gone_is_an_error(lifted: Lifted, tmp_path: Path) -> None:
    module = lifted("llama")
    module.metadata["tokenizer"] = str(tmp_path / "gone")
    with pytest.raises(InputError, match="gone does not exist"):
        irlab.emit(module, "hf", tmp_path / "out", parity=False)


def test_missing_weights_leave_nothing_behind(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(checkpoint("llama") / "config.json", source)
    with pytest.raises(InputError, match=r"model\.safetensors: No such file"):
        irlab.emit(irlab.load(source), "hf", tmp_path / "out", parity=False)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_weights_that_are_no_numbers_are_named(lifted: Lifted, tmp_path: Path) -> None:
    module = lifted("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    symbol = module.weights[name]
    values = np.array(as_f32(symbol.recipe.read()))
    values[3, 4] = np.nan
    replace_weights(module.graph, {name: WeightSymbol(name, Array(symbol.type, values))})
    with pytest.raises(InputError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' holds NaN at \[3, 4\]"):
        irlab.emit(module, "hf", tmp_path / "out", parity=False)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_needs_force(checkpoint: Checkpoint, lifted: Lifted, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "precious").write_text("x")
    with pytest.raises(InputError, match="exists"):
        irlab.emit(lifted("llama"), "hf", out, parity=False)
    assert (out / "precious").exists()
    irlab.emit(lifted("llama"), "hf", out, parity=False, force=True)
    assert not (out / "precious").exists() and same_tensors(out, checkpoint("llama"))


class Careless(HF, name="careless-hf"):
    """Writes another eps than was proven."""

    def write(self, module: Module, out: Path, ctx: Context) -> Readings:
        module.metadata["config"]["rms_norm_eps"] = 0.5
        return super().write(module, out, ctx)


def test_the_parity_gate_runs_transformers_itself(lifted: Lifted, tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"logits differ by .* in transformers"):
        emit_with(Careless(), lifted("llama"), tmp_path / "out", parity=True, force=False)
    assert [p.name for p in tmp_path.iterdir()] == ["out.rejected"]


def test_transformers_names_what_it_misses(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shutil.copytree(checkpoint("llama"), tmp_path / "broken")
    config = json.loads((tmp_path / "broken/config.json").read_text())
    (tmp_path / "broken/config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    runtime = Transformers()
    with pytest.raises(InputError, match=r"missing keys: model\.layers\.2"):
        runtime.logits(tmp_path / "broken", [IDS])
    assert len(runtime.greedy(checkpoint("llama"), IDS, 4)) == 4  # the same child goes on


def run_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "irlab", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_one_command_writes_it_beside_the_others(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source, out, report = checkpoint("llama"), tmp_path / "out", tmp_path / "report.json"
    pipeline = "fuse,quantize{scheme=int4 group=32},kv-cache"
    command = (source, "-p", pipeline, "--emit", "hf", "-o", out, "--emit", "ir", "-o", tmp_path / "m.irlab")
    done = run_cli(*command, "--report", report)
    assert done.returncode == 0, done.stderr
    assert "greedy tokens equal" in done.stderr
    parity = json.loads(report.read_text())["parity"][str(out)]
    assert parity["runtime"] == "transformers" and parity["max_abs_logit_diff"] < 1e-3
    assert (out / "model.safetensors").is_file() and (tmp_path / "m.irlab").is_dir()


def test_the_command_refuses_in_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for out, pipeline, words in ((tmp_path / "out", "", "exists"), (tmp_path / "new", "fuse-gate-up", "nn.gated_mlp")):
        done = run_cli(checkpoint("llama"), "-p", pipeline, "--emit", "hf", "-o", out, "--no-parity")
        assert done.returncode == 1
        assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
