"""Models from GGUF files: what was written as one is lifted to the same graph, weights, codes and tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import irlab
from irlab import Module, nn
from irlab.backends.gguf.ggml import ggml_type
from irlab.backends.gguf.writer import TensorInfo, write
from irlab.demo import path as demo_directory
from irlab.encodings import IntegerEncoding
from irlab.errors import InputError
from irlab.parity import load_tokenizer
from irlab.types import f16
from irlab.weights.gguf import open_gguf
from tests.tiny_models import ARCHITECTURES, tiny_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def logits(module: Module, vocabulary: int) -> np.ndarray[Any, Any]:
    ids = np.random.default_rng(0).integers(0, vocabulary, (2, 20))
    return irlab.evaluate(module, {"input_ids": ids})["logits"].float().numpy()


def emitted(module: Module, out: Path, **options: object) -> Path:
    irlab.emit(irlab.run(module, "fuse"), "gguf", out, parity=False, **options)
    return out


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_written_model_is_lifted_again(tmp_path: Path, kind: str) -> None:
    original = irlab.load(tiny_model(tmp_path / kind, kind))
    again = irlab.load(emitted(original, tmp_path / "model.gguf"))
    np.testing.assert_allclose(logits(again, 96), logits(original, 96), rtol=2e-5, atol=2e-5)
    fused = irlab.run(again, "fuse")
    assert len(fused.graph.find(nn.Attention)) == len(irlab.run(original, "fuse").graph.find(nn.Attention)) > 0


def test_half_precision_stays_where_it_is_exact(tmp_path: Path) -> None:
    original = irlab.load(tiny_model(tmp_path / "m", "llama", dtype="bfloat16"))
    again = irlab.load(emitted(original, tmp_path / "model.gguf"))
    assert str(again.graph.outputs["logits"].type) == str(original.graph.outputs["logits"].type)
    np.testing.assert_array_equal(logits(again, 96), logits(original, 96))


def test_the_demo_model_keeps_its_tokens_and_texts(tmp_path: Path) -> None:
    original = irlab.load("demo")
    again = irlab.load(emitted(original, tmp_path / "stories.gguf"))
    text = "Once upon a time, Tom's 12 dogs\n\n ran  away. naïve 🙂"
    one, other = load_tokenizer(original), load_tokenizer(again)
    assert one is not None and other is not None
    assert other.encode(text).ids == one.encode(text).ids
    assert other.decode(one.encode(text).ids) == one.decode(one.encode(text).ids)
    ids = np.array([one.encode(text).ids])
    for module in (original, again):
        assert module.metadata["tokenizer"]
    np.testing.assert_array_equal(
        *(irlab.evaluate(module, {"input_ids": ids})["logits"].float().numpy() for module in (original, again))
    )


@pytest.mark.parametrize("type", ["q4_0", "q8_0", "q4_1", "q4_k_m"])
def test_codes_are_the_same_through_a_second_file(tmp_path: Path, type: str) -> None:
    kind = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    original = irlab.load(tiny_model(tmp_path / "m", "llama", **kind))
    first = emitted(original, tmp_path / "a.gguf", type=type)
    second = emitted(irlab.load(first), tmp_path / "b.gguf")
    one, other = open_gguf(first), open_gguf(second)
    assert one.entries.keys() == other.entries.keys()
    for name, entry in one.entries.items():
        assert other.entry(name).type_name == entry.type_name
        np.testing.assert_array_equal(other.read(name, 0, entry.shape[0]), one.read(name, 0, entry.shape[0]))


def test_codes_that_onnx_has_too_are_its_codes(tmp_path: Path) -> None:
    original = irlab.load(tiny_model(tmp_path / "m", "llama"))
    first = emitted(irlab.run(original, "fuse,quantize{scheme=int4 group=32}"), tmp_path / "a.gguf")
    module = irlab.load(first)
    encodings = {symbol.type.encoding for name, symbol in module.weights.items() if "mlp" in name}
    assert encodings == {IntegerEncoding(4, True, 32, f16)}
    found = irlab.emit(irlab.run(module, "fuse"), "onnx", tmp_path / "onnx", parity=True)
    assert not found.parity.skipped


def test_pages_say_nothing_of_where_the_file_lies(tmp_path: Path) -> None:
    from irlab.viz import dump

    file = emitted(irlab.load(tiny_model(tmp_path / "m", "llama")), tmp_path / "model.gguf")
    dump(irlab.run(irlab.load(file), "fuse"), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "model.gguf" in page and str(tmp_path) not in page


def test_shards_are_one_model(tmp_path: Path) -> None:
    original = irlab.load(tiny_model(tmp_path / "m", "llama"))
    folder = emitted(original, tmp_path / "shards", split=65536)
    files = sorted(folder.glob("*.gguf"))
    assert len(files) > 2
    np.testing.assert_allclose(logits(irlab.load(folder), 96), logits(original, 96), rtol=2e-5, atol=2e-5)
    with pytest.raises(InputError, match=r"is one of .* files and not the first"):
        irlab.load(files[1])
    files[1].unlink()
    with pytest.raises(InputError, match=re.escape(str(files[1]))):
        irlab.load(files[0])


def changed(file: Path, out: Path, keys: Mapping[str, Any], drop: str = "", add: str = "") -> Path:
    """`file` with other metadata (None: without it), without the tensor `drop`, or with one called `add`."""
    found = open_gguf(file)
    metadata = {k: _value(v) for k, v in (found.metadata | dict(keys)).items()}
    tensors = {
        TensorInfo(name, entry.shape, ggml_type(entry.type_name)): found.read(name, 0, entry.shape[0])
        for name, entry in found.entries.items()
        if name != drop
    }
    if add:
        tensors[TensorInfo(add, (4,), ggml_type("F32"))] = np.zeros((4, 4), np.uint8)
    write(out, {k: v for k, v in metadata.items() if v is not None}, tensors)
    return out


def _value(value: Any) -> Any:
    """As the writer takes it: numbers of an array in one."""
    return np.array(value) if isinstance(value, tuple) and value and not isinstance(value[0], str) else value


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return emitted(irlab.load(tiny_model(tmp_path / "m", "llama")), tmp_path / "llama.gguf")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "mamba"}, "models of the architecture 'mamba' are not lifted"),
    "missing": ({"llama.block_count": None}, "the file has no llama.block_count"),
    "negative": (
        {"llama.attention.head_count": np.int32(-4)},
        "llama.attention.head_count is -4, which is no positive number",
    ),
    "many layers": ({"llama.block_count": 1 << 20}, "num_hidden_layers is 1048576"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count is 8, which irlab does not lift"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, "rotary scaling of the kind 'yarn' is not lifted"),
    "heads": ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8, and heads have 16 features"),
    "width": ({"llama.feed_forward_length": 96}, "the metadata ask for"),
}


@pytest.mark.parametrize(("keys", "message"), BAD.values(), ids=BAD.keys())
def test_metadata_that_no_model_has_are_refused(
    tmp_path: Path, llama: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        irlab.load(changed(llama, tmp_path / "bad.gguf", keys))
    assert message in str(caught.value) and "bad.gguf" in str(caught.value)


def test_missing_and_left_over_tensors_are_refused(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(InputError, match=r"no tensor called 'model.layers.1.mlp.up_proj.weight'"):
        irlab.load(changed(llama, tmp_path / "less.gguf", {}, drop="blk.1.ffn_up.weight"))
    with pytest.raises(InputError, match=r"tensor 'blk.0.attn_sinks.weight' has no place in a model of .* llama"):
        irlab.load(changed(llama, tmp_path / "more.gguf", {}, add="blk.0.attn_sinks.weight"))


def test_tokens_that_cannot_be_cut_as_llama_cpp_cuts_are_left_out_and_said(tmp_path: Path) -> None:
    file = emitted(irlab.load("demo"), tmp_path / "demo.gguf")
    module = irlab.load(changed(file, tmp_path / "other.gguf", {"tokenizer.ggml.pre": "bespoke"}))
    assert load_tokenizer(module) is None
    assert any("the pre-tokenizer 'bespoke' is not known" in note for note in module.metadata["notes"])


def test_special_tokens_templates_and_licences_travel(tmp_path: Path) -> None:
    file = emitted(irlab.load("demo"), tmp_path / "demo.gguf")
    keys = {"tokenizer.chat_template": "{{ messages }}", "general.license": "mit"}
    again = emitted(irlab.load(changed(file, tmp_path / "more.gguf", keys)), tmp_path / "again.gguf")
    one, other = open_gguf(tmp_path / "more.gguf").metadata, open_gguf(again).metadata
    same = [key for key in one if key.startswith("tokenizer.") and key != "tokenizer.ggml.padding_token_id"]
    assert same and {key: other.get(key) for key in same} == {key: one[key] for key in same}
    assert other["general.license"] == "mit"


def test_the_demo_directory_is_no_gguf_file() -> None:
    from irlab.frontends.gguf import GGUF

    assert not GGUF().accepts(str(demo_directory())) and not GGUF().accepts("gpt2/model.gguf")
