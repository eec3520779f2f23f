"""prune-vocab: the same text is cut into the same tokens, and the model says of them what it did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny_model

import irlab
from irlab import Module
from irlab.errors import InputError
from irlab.parity import load_tokenizer
from irlab.passes.prune.tokenizer import closure, renumber_config, renumbered

TEXT = "Once upon a time there was a little girl who lived in a house near the forest."


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "keep.txt"
    file.write_text(TEXT * 3, "utf-8")
    return file


@pytest.fixture(scope="module")
def demo() -> Module:
    return irlab.run(irlab.load("demo"), "fuse,cast{dtype=f32}")


def test_the_model_says_the_same(demo: Module, text: Path, tmp_path: Path) -> None:
    small = irlab.run(demo, f'prune-vocab{{keep="{text}"}}', cache_dir=tmp_path)
    old, new = load_tokenizer(demo), load_tokenizer(small)
    before, after = old.encode(TEXT), new.encode(TEXT)
    assert after.tokens == before.tokens and new.get_vocab_size() < 600 < old.get_vocab_size()
    rows = small.weights["model.embed_tokens.weight"].type.shape[0]
    assert rows == new.get_vocab_size() == small.metadata["config"]["vocab_size"]
    a, b = (irlab.evaluate(m, {"input_ids": [e.ids]})["logits"][0] for m, e in ((demo, before), (small, after)))
    ids = [old.token_to_id(new.id_to_token(i)) for i in range(new.get_vocab_size())]
    np.testing.assert_allclose(b.numpy(), a[:, ids].numpy(), atol=1e-5)
    assert new.decode(after.ids) == old.decode(before.ids)
    # Any text can still be written.
    assert new.decode(new.encode("Zebras quiz 42! ü").ids) == "Zebras quiz 42! ü"


@pytest.mark.parametrize("target", ["gguf", "hf"])
def test_outputs_carry_the_tokenizer(demo: Module, text: Path, tmp_path: Path, target: str) -> None:
    small = irlab.run(demo, f'prune-vocab{{keep="{text}"}}', cache_dir=tmp_path / "cache")
    emitted = irlab.emit(small, target, str(tmp_path / "out"))
    assert emitted.parity is not None and emitted.parity.greedy_equal


def test_an_untied_head_follows(text: Path, tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "model", "llama", vocab_size=1024)
    for file in (Path(irlab.__file__).parent / "demo").glob("tokenizer*.json"):
        (directory / file.name).write_bytes(file.read_bytes())
    module = irlab.run(irlab.load(str(directory)), "fuse")
    small = irlab.run(module, f'prune-vocab{{keep="{text}"}}', cache_dir=tmp_path / "cache")
    heads = {small.weights[name].type.shape for name in ("lm_head.weight", "model.embed_tokens.weight")}
    assert len(heads) == 1


def tokenizer(kind: str) -> dict[str, Any]:
    if kind == "WordPiece":
        vocab: Any = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##b", "cat", "dog", "##s"])}
        added = [{"id": i, "content": t} for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])]
        post = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
        return {
            "model": {"type": kind, "vocab": vocab, "unk_token": "[UNK]"},
            "added_tokens": added,
            "post_processor": post,
        }
    pieces = [["<unk>", 0.0], ["cat", -2.0], ["dog", -3.0], ["a", -4.0], ["birds", -5.0]]
    return {"model": {"type": kind, "vocab": pieces, "unk_id": 0}, "added_tokens": [], "post_processor": None}


def test_other_kinds_of_tokenizers() -> None:
    words = tokenizer("WordPiece")
    kept = closure(words, [7])
    assert kept == [0, 1, 2, 3, 4, 5, 7, 8]
    made = renumbered(words, {old: new for new, old in enumerate(kept)})
    assert made["model"]["vocab"] == {
        "[PAD]": 0,
        "[UNK]": 1,
        "[CLS]": 2,
        "[SEP]": 3,
        "a": 4,
        "##b": 5,
        "dog": 6,
        "##s": 7,
    }
    pieces = tokenizer("Unigram")
    kept = closure(pieces, [4])
    assert [p for p, _ in renumbered(pieces, {o: n for n, o in enumerate(kept)})["model"]["vocab"]] == [
        "<unk>",
        "a",
        "birds",
    ]


def test_ids_in_configurations() -> None:
    config = {"eos_token_id": [5, 9], "bos_token_id": 3, "pad_token_id": 4, "vocab_size": 10, "hidden_size": 5}
    made = renumber_config(config, {5: 1, 3: 0}, 2)
    assert made == {"eos_token_id": [1], "bos_token_id": 0, "pad_token_id": None, "vocab_size": 2, "hidden_size": 5}


def test_what_is_refused(demo: Module, text: Path, tmp_path: Path) -> None:
    bare = demo.clone()
    del bare.metadata["tokenizer"]
    with pytest.raises(InputError, match="no tokenizer, which would have to follow"):
        irlab.run(bare, f'prune-vocab{{keep="{text}"}}', cache_dir=tmp_path)
    ids = tmp_path / "ids.json"
    for content, message in ((json.dumps([1, 5000]), "names the token 5000"), ("{}", "is not a list of token ids")):
        ids.write_text(content)
        with pytest.raises(InputError, match=message):
            irlab.run(demo, f'prune-vocab{{keep="{ids}"}}', cache_dir=tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel"}}))
    bare.metadata["tokenizer"] = str(tmp_path)
    with pytest.raises(InputError, match="a tokenizer of type WordLevel cannot be cut"):
        irlab.run(bare, f'prune-vocab{{keep="{text}"}}', cache_dir=tmp_path)
