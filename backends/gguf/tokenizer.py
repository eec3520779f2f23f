"""How does the tokenizer of a Hugging Face directory become GGUF's `tokenizer.*` keys?

Two kinds exist for the models we write: byte-level BPE (llama.cpp's "gpt2") and SentencePiece-like BPE with byte
fallback ("llama"). What cannot be said in GGUF is refused; what can only be said approximately is noted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from irlab.backends.gguf.pretokenizers import find_pretokenizer
from irlab.backends.gguf.sentencepiece_model import read_sentencepiece
from irlab.backends.gguf.writer import MetadataValue
from irlab.errors import InputError

Json = dict[str, Any]
_KEYS = gguf.Keys.Tokenizer
_TYPES = gguf.TokenType

# A token that merging never makes: below every score.
_NO_MERGE_SCORE = -1000.0

_SPECIAL = {  # name in Hugging Face's files: GGUF key
    "bos_token": _KEYS.BOS_ID,
    "eos_token": _KEYS.EOS_ID,
    "unk_token": _KEYS.UNK_ID,
    "sep_token": _KEYS.SEP_ID,
    "pad_token": _KEYS.PAD_ID,
    "mask_token": _KEYS.MASK_ID,
}
# Where llama.cpp looks for further tokens that end a generation.
_MORE_ENDS = (_KEYS.EOT_ID, _KEYS.EOM_ID)

# What llama.cpp takes for the end of text in a byte-level vocabulary where the file names none.
_DEFAULT_BPE_EOS = 11


@dataclass(frozen=True)
class TokenizerMetadata:
    """GGUF keys and values, and remarks on what they cannot say exactly."""

    metadata: dict[str, MetadataValue]
    notes: tuple[str, ...] = ()


@dataclass
class _Vocabulary:
    """Tokens by id, as they are filled in."""

    size: int
    where: str
    tokens: list[str | None] = field(init=False)
    types: list[int] = field(init=False)
    scores: list[float] = field(init=False)
    id_of: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = [None] * self.size
        self.types = [int(_TYPES.UNUSED)] * self.size
        self.scores = [_NO_MERGE_SCORE] * self.size

    def put(self, index: int, token: str, kind: int, score: float | None = None) -> None:
        if not 0 <= index < self.size:
            raise InputError(f"{self.where}: token {token!r} has id {index}, but the embedding has {self.size} rows")
        if self.id_of.setdefault(token, index) != index:
            raise InputError(f"{self.where}: {token!r} is both token {self.id_of[token]} and token {index}")
        old = self.tokens[index]
        if old is not None and old != token:
            del self.id_of[old]
        self.tokens[index], self.types[index] = token, int(kind)
        if score is not None:
            self.scores[index] = score

    def metadata(self) -> dict[str, MetadataValue]:
        # Rows of the embedding that no token uses get names, which must not repeat.
        names = [f"[PAD{index}]" if token is None else token for index, token in enumerate(self.tokens)]
        return {_KEYS.LIST: names, _KEYS.TOKEN_TYPE: np.array(self.types, np.int32)}


def tokenizer_metadata(directory: Path, vocab_size: int, *, pre: str = "") -> TokenizerMetadata:
    """The GGUF form of the tokenizer in `directory`.

    vocab_size: rows of the embedding; rows beyond the tokenizer's own become unused tokens.
    pre:        take this pre-tokenizer of llama.cpp's instead of finding it (byte-level BPE only).

    Reads tokenizer.json, tokenizer.model, tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat
    templates, and the token ids in config.json and generation_config.json. Raises InputError where there is no
    tokenizer, where GGUF has no form for it, or where it does not fit the embedding.
    """
    files = _Files(directory)
    tokenizer = files.json("tokenizer.json")
    vocabulary = _Vocabulary(vocab_size, str(directory))
    notes: list[str] = []
    if tokenizer is None:
        if not files.has("tokenizer.model"):
            raise InputError(f"{directory} holds neither tokenizer.json nor tokenizer.model")
        metadata = _sentencepiece(files, None, vocabulary, notes)
    elif _is_sentencepiece_like(tokenizer):
        metadata = _sentencepiece(files, tokenizer, vocabulary, notes)
    else:
        metadata = _byte_level(files, tokenizer, vocabulary, pre, notes)
    metadata |= _special_tokens(files, tokenizer, vocabulary, notes)
    metadata |= _chat_templates(files)
    return TokenizerMetadata(metadata, tuple(notes))


def no_tokenizer(architecture: str, vocab_size: int) -> TokenizerMetadata:
    """For a model that has no tokenizer: llama.cpp then runs token ids, but no text."""
    return TokenizerMetadata(
        {_KEYS.MODEL: "none", gguf.Keys.LLM.VOCAB_SIZE.format(arch=architecture): vocab_size},
        ("the model has no tokenizer: the file runs token ids, but no text",),
    )


class _Files:
    """The small files of a model directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def has(self, name: str) -> bool:
        return (self.directory / name).is_file()

    def path(self, name: str) -> Path:
        return self.directory / name

    def json(self, name: str) -> Json | None:
        if not self.has(name):
            return None
        try:
            value = json.loads(self.path(name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{self.path(name)} is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise InputError(f"{self.path(name)} holds no JSON object")
        return value


def _is_sentencepiece_like(tokenizer: Json) -> bool:
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        return False
    rules = _flat(tokenizer.get("normalizer")) + _flat(tokenizer.get("pre_tokenizer"))
    return any(rule.get("type") == "Metaspace" or _replaces_spaces(rule) for rule in rules)


def _replaces_spaces(rule: Json) -> bool:
    return (rule.get("type"), rule.get("pattern"), rule.get("content")) == ("Replace", {"String": " "}, "▁")


def _flat(node: Json | None) -> list[Json]:
    if node is None:
        return []
    if node.get("type") == "Sequence":
        return [rule for child in node.get("normalizers") or node.get("pretokenizers") or [] for rule in _flat(child)]
    return [node]


def _byte_level(files: _Files, tokenizer: Json, vocabulary: _Vocabulary, pre: str, notes: list[str]) -> Json:
    where = str(files.path("tokenizer.json"))
    model = _bpe_model(tokenizer, where)
    for rule in _flat(tokenizer.get("normalizer")):
        if rule.get("type") != "NFC":
            raise InputError(
                f"{where}: GGUF has no form for the normalizer {rule.get('type')} in a byte-level tokenizer"
            )
        notes.append("llama.cpp does not normalise text to NFC, as this tokenizer does: text in other forms differs")
    for token, index in model["vocab"].items():
        vocabulary.put(index, token, _TYPES.NORMAL)
    _put_added(tokenizer, vocabulary)
    if not pre:
        row = find_pretokenizer(tokenizer, where)
        pre = row.name
        if row.remark:
            notes.append(f"pre-tokenizer {row.name}: {row.remark}")
    return {
        _KEYS.MODEL: "gpt2",
        _KEYS.PRE: pre,
        **vocabulary.metadata(),
        _KEYS.MERGES: [" ".join(pair) for pair in _merges(model, where)],
    }


def _sentencepiece(files: _Files, tokenizer: Json | None, vocabulary: _Vocabulary, notes: list[str]) -> Json:
    if files.has("tokenizer.model"):
        model = read_sentencepiece(files.path("tokenizer.model"))
        if not model.is_bpe:
            raise InputError(f"{files.path('tokenizer.model')}: GGUF's llama tokenizer is for BPE, this one is unigram")
        for index, piece in enumerate(model.pieces):
            vocabulary.put(index, piece.text, piece.kind, piece.score)
        prefix = model.adds_space_prefix
    else:
        assert tokenizer
        _put_ranked(tokenizer, vocabulary, str(files.path("tokenizer.json")), notes)
    if tokenizer is not None:
        prefix = _adds_space_prefix(tokenizer)
        _put_added(tokenizer, vocabulary)
    for token, index in (files.json("added_tokens.json") or {}).items():
        if vocabulary.id_of.get(token) != index:
            vocabulary.put(index, token, _TYPES.USER_DEFINED)
    return {
        _KEYS.MODEL: "llama",
        _KEYS.PRE: "default",
        **vocabulary.metadata(),
        _KEYS.SCORES: np.array(vocabulary.scores, np.float32),
        _KEYS.ADD_PREFIX: prefix,
    }


def _put_ranked(tokenizer: Json, vocabulary: _Vocabulary, where: str, notes: list[str]) -> None:
    """SentencePiece-like tokens from tokenizer.json alone. llama.cpp merges by scores, the highest first: minus the
    rank of a token's first merge gives its order back."""
    model = _bpe_model(tokenizer, where)
    if not model.get("byte_fallback"):
        raise InputError(f"{where}: a SentencePiece-like tokenizer without byte fallback has no form in GGUF")
    rank: dict[str, int] = {}
    merges = _merges(model, where)
    for index, (left, right) in enumerate(merges):
        rank.setdefault(left + right, index)
    for token, index in model["vocab"].items():
        kind = _TYPES.NORMAL
        if token == model.get("unk_token"):
            kind = _TYPES.UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kind = _TYPES.BYTE
        vocabulary.put(index, token, kind, -float(rank[token]) if token in rank else None)
    missing = _unlisted_merges(model["vocab"], merges)
    if missing:
        notes.append(
            f"{where} lists no merge of {missing[0]}, though all three are tokens ({len(missing)} such): llama.cpp "
            "merges whenever the result is a token, so some words may be cut differently"
        )


def _unlisted_merges(vocab: dict[str, int], merges: list[tuple[str, str]]) -> list[str]:
    """Pairs of tokens that llama.cpp would merge and tokenizer.json does not. Only tokens that some merge makes count:
    the others (user-defined ones) are found in the text before any merging."""
    listed = set(merges)
    made = {left + right for left, right in merges}
    return [
        f"{token[:at]!r} + {token[at:]!r}"
        for token in made
        for at in range(1, len(token))
        if token[:at] in vocab and token[at:] in vocab and (token[:at], token[at:]) not in listed
    ]


def _bpe_model(tokenizer: Json, where: str) -> Json:
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        raise InputError(f"{where}: GGUF files are written for BPE tokenizers, this is {model.get('type')}")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        raise InputError(f"{where}: GGUF has no form for BPE with subword prefixes, word suffixes or dropout")
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise InputError(f"{where}: the BPE model lacks its vocab or merges")
    return model


def _merges(model: Json, where: str) -> list[tuple[str, str]]:
    """The merges as pairs; older files write them as one string."""
    merges: list[tuple[str, str]] = []
    for entry in model["merges"]:
        parts = entry.split(" ") if isinstance(entry, str) else entry
        if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise InputError(f"{where}: {entry!r} is no merge of two tokens")
        merges.append((parts[0], parts[1]))
    return merges


def _put_added(tokenizer: Json, vocabulary: _Vocabulary) -> None:
    for token in tokenizer.get("added_tokens") or []:
        index, text = token["id"], token["content"]
        in_range = 0 <= index < vocabulary.size
        if in_range and vocabulary.types[index] == _TYPES.UNKNOWN:
            continue
        vocabulary.put(index, text, _TYPES.CONTROL if token.get("special") else _TYPES.USER_DEFINED)


def _adds_space_prefix(tokenizer: Json) -> bool:
    for rule in _flat(tokenizer.get("normalizer")) + _flat(tokenizer.get("pre_tokenizer")):
        if rule.get("type") == "Prepend":
            return bool(rule.get("prepend") == "▁")
        if rule.get("type") == "Metaspace":
            return bool(
                rule.get("prepend_scheme", "always" if rule.get("add_prefix_space", True) else "never") != "never"
            )
    return False


def _special_tokens(files: _Files, tokenizer: Json | None, vocabulary: _Vocabulary, notes: list[str]) -> Json:
    config = files.json("tokenizer_config.json") or {}
    named = {**(files.json("special_tokens_map.json") or {}), **config}
    model_config = files.json("config.json") or {}
    found: Json = {}
    for name, key in _SPECIAL.items():
        token = named.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        index = vocabulary.id_of.get(text) if isinstance(text, str) else None
        if index is None and text is None:
            index = model_config.get(f"{name}_id")
            index = index[0] if isinstance(index, list) and index else index
        if isinstance(index, int) and 0 <= index < vocabulary.size:
            found[key] = index
    first, last = _template_ends(tokenizer)
    for name, key, token in (("bos", _KEYS.BOS_ID, first), ("eos", _KEYS.EOS_ID, last)):
        index = None if token is None else vocabulary.id_of.get(token)
        if index is not None:
            found.setdefault(key, index)
        by_template = index is not None and found.get(key) == index
        if index is not None and not by_template:
            notes.append(f"the tokenizer adds {token!r}, which is not its {name} token: GGUF cannot say that")
        explicit = config.get(f"add_{name}_token")
        found[getattr(_KEYS, f"ADD_{name.upper()}")] = (
            explicit if isinstance(explicit, bool) else by_template
        ) and key in found
    _add_ends(files, model_config, vocabulary, found, notes)
    return found


def _template_ends(tokenizer: Json | None) -> tuple[str | None, str | None]:
    """The special tokens that the post-processor puts before and after a text."""
    node = (tokenizer or {}).get("post_processor") or {}
    for rule in node.get("processors", [node]):
        if rule.get("type") == "TemplateProcessing" and rule.get("single"):
            ends = [rule["single"][place].get("SpecialToken", {}).get("id") for place in (0, -1)]
            return ends[0], ends[1]
    return None, None


def _add_ends(files: _Files, model_config: Json, vocabulary: _Vocabulary, found: Json, notes: list[str]) -> None:
    """Further tokens that end a generation, by generation_config.json or config.json."""
    generation = files.json("generation_config.json") or model_config
    ends = generation.get("eos_token_id")
    ends = [ends] if isinstance(ends, int) else ends if isinstance(ends, list) else []
    ends = [end for end in ends if isinstance(end, int) and 0 <= end < vocabulary.size]
    if _KEYS.EOS_ID not in found and ends:
        found[_KEYS.EOS_ID] = ends[0]
    others = [end for end in ends if end != found.get(_KEYS.EOS_ID)]
    for key, end in zip(_MORE_ENDS, others):
        found[key] = end
    if len(others) > len(_MORE_ENDS):
        notes.append(f"tokens {others[len(_MORE_ENDS) :]} end a generation too, which GGUF has no key for")
    if _KEYS.EOS_ID not in found and vocabulary.size > _DEFAULT_BPE_EOS:
        notes.append("the tokenizer names no end-of-text token: llama.cpp takes one by its default")


def _chat_templates(files: _Files) -> Json:
    """The default template, and named ones beside it."""
    templates: dict[str, str] = {}
    configured = (files.json("tokenizer_config.json") or {}).get("chat_template")
    if isinstance(configured, str):
        templates["default"] = configured
    elif isinstance(configured, list):
        templates |= {
            entry["name"]: entry["template"] for entry in configured if "name" in entry and "template" in entry
        }
    if files.has("chat_template.jinja"):
        templates["default"] = files.path("chat_template.jinja").read_text(encoding="utf-8")
    elif files.has("chat_template.json"):
        from_json = (files.json("chat_template.json") or {}).get("chat_template")
        if isinstance(from_json, str):
            templates["default"] = from_json
    for path in sorted(files.path("additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    named = {name: text for name, text in templates.items() if name != "default"}
    metadata: Json = {}
    if templates.get("default"):
        metadata[_KEYS.CHAT_TEMPLATE] = templates["default"]
    if named:
        metadata[_KEYS.CHAT_TEMPLATES] = list(named)
        metadata |= {_KEYS.CHAT_TEMPLATE_N.format(name=name): text for name, text in named.items()}
    return metadata
