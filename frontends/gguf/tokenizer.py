"""The tokenizer of a GGUF file, as the files that transformers has: converted once, and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from irlab import cache
from irlab.pretokenizers import GPT2_WORDS, PRE_TOKENIZERS, SINGLE_DIGITS, PreTokenizer
from irlab.weights.gguf import GGUFFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPECIAL: Final = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "seperator": "sep", "mask": "mask"}
"""GGUF's names (and its spelling) of special tokens, and transformers'."""

_SAME: Final = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "deepseek-r1-qwen": "qwen2",
    "stablelm2": "qwen2",
    "llama4": "gpt-4o",
}
"""Names of one and the same pre-tokenizer."""


class Unknown(Exception):
    """A tokenizer that cannot be converted, with the reason."""


def tokenizer_directory(file: GGUFFile) -> Path:
    """A directory with tokenizer.json and its companions. Raises Unknown where `file` has no tokens, or has them in a
    form that irlab does not know: a guess would tokenise wrongly."""
    about = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    key = hashlib.sha256(repr(sorted(about.items())).encode()).hexdigest()
    directory = cache.default_directory() / "tokenizers" / key[:32]
    if not directory.is_dir():
        made = _Metadata(about)
        tokenizer = made.tokenizer()
        temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            temporary.mkdir(parents=True)
            tokenizer.save(str(temporary / "tokenizer.json"))
            (temporary / "tokenizer_config.json").write_text(json.dumps(made.config(), indent=1), "utf-8")
            if template := made.get("chat_template", str, ""):
                (temporary / "chat_template.jinja").write_text(template, "utf-8")
            os.replace(temporary, directory)
        except OSError:
            if not directory.is_dir():  # else another process was first
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return directory


class _Metadata:
    """What a file says of its tokenizer."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.about = about
        self.kind = self.get("ggml.model", str, "")
        self.tokens: tuple[str, ...] = self.get("ggml.tokens", tuple, ())
        if not self.tokens:
            raise Unknown("it has no tokens")
        self.types: tuple[int, ...] = self.get("ggml.token_type", tuple, (_NORMAL,) * len(self.tokens))
        if len(self.types) != len(self.tokens):
            raise Unknown(f"it has {len(self.tokens)} tokens, and types of {len(self.types)}")

    def get(self, key: str, kind: type, default: Any) -> Any:
        value = self.about.get(f"tokenizer.{key}", default)
        if not isinstance(value, kind):
            raise Unknown(f"tokenizer.{key} is no {kind.__name__}")
        return value

    def tokenizer(self) -> Tokenizer:
        from tokenizers import AddedToken

        try:
            made = {"gpt2": self._byte_level, "llama": self._sentencepiece}[self.kind]()
        except KeyError:
            raise Unknown(f"tokenizers of the kind '{self.kind}' are not known") from None
        except Unknown:
            raise
        except Exception as error:  # the library raises plain Exceptions
            raise Unknown(f"its tokens do not fit each other: {error}") from None
        for special, kinds in ((True, (_UNKNOWN, _CONTROL)), (False, (_USER_DEFINED,))):
            texts = [text for text, kind in zip(self.tokens, self.types) if kind in kinds]
            made.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])
        return made

    def _byte_level(self) -> Tokenizer:
        from tokenizers import Tokenizer, decoders, models, processors

        row = self._pre_tokenizer()
        merges = [tuple(merge.split(" ")) for merge in self.get("ggml.merges", tuple, ())]
        made = Tokenizer(models.BPE(self._vocabulary(), merges, ignore_merges=row.ignore_merges))
        made.pre_tokenizer = _cutting(row)
        made.decoder = decoders.ByteLevel()
        made.post_processor = self._ends(default=False) or processors.ByteLevel(trim_offsets=False)
        return made

    def _pre_tokenizer(self) -> PreTokenizer:
        name = self.get("ggml.pre", str, "")
        for row in PRE_TOKENIZERS:
            if row.name == _SAME.get(name, name):
                return row
        raise Unknown(f"the pre-tokenizer '{name}' is not known")

    def _sentencepiece(self) -> Tokenizer:
        from tokenizers import Tokenizer, decoders, models, normalizers
        from transformers.convert_slow_tokenizer import generate_merges

        scores = self.get("ggml.scores", tuple, ())
        if len(scores) != len(self.tokens):
            raise Unknown(f"it has {len(self.tokens)} tokens, and scores of {len(scores)}")
        vocabulary = self._vocabulary()
        normal = {t: s for t, s, kind in zip(self.tokens, scores, self.types) if kind == _NORMAL}
        unknown = next((t for t, kind in zip(self.tokens, self.types) if kind == _UNKNOWN), None)
        merges = generate_merges(vocabulary, normal)
        prefix = self.get("ggml.add_space_prefix", bool, True)
        made = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
        made.normalizer = normalizers.Sequence(
            [*([normalizers.Prepend(_SPACE)] if prefix else []), normalizers.Replace(" ", _SPACE)]
        )
        made.decoder = decoders.Sequence(
            [
                decoders.Replace(_SPACE, " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                *([decoders.Strip(" ", 1, 0)] if prefix else []),
            ]
        )
        if (ends := self._ends(default=True)) is not None:
            made.post_processor = ends
        return made

    def _vocabulary(self) -> dict[str, int]:
        found = {token: index for index, token in enumerate(self.tokens)}
        if len(found) != len(self.tokens):
            raise Unknown("two of its tokens are the same")
        return found

    def _ends(self, default: bool) -> Any:
        """What puts tokens before and after a text; None where nothing does."""
        from tokenizers import processors

        first = self._special("bos") if self._adds("bos", default) else None
        last = self._special("eos") if self._adds("eos", False) else None
        ends = [(token, self.tokens.index(token)) for token in (first, last) if token is not None]
        if not ends:
            return None
        parts = [first, "$A", last]
        return processors.TemplateProcessing(
            single=" ".join(part for part in parts if part is not None), special_tokens=ends
        )

    def _adds(self, name: str, default: bool) -> bool:
        return bool(self.get(f"ggml.add_{name}_token", bool, default))

    def _special(self, name: str) -> str | None:
        """The token that GGUF calls `name`_token_id."""
        index = self.about.get(f"tokenizer.ggml.{name}_token_id")
        return self.tokens[index] if isinstance(index, int) and 0 <= index < len(self.tokens) else None

    def config(self) -> dict[str, Any]:
        """The tokenizer_config.json."""
        found: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        for ours, theirs in _SPECIAL.items():
            if (token := self._special(ours)) is not None:
                found[f"{theirs}_token"] = token
        found["add_bos_token"] = self._adds("bos", self.kind == "llama")
        found["add_eos_token"] = self._adds("eos", False)
        return found


def _cutting(row: PreTokenizer) -> Any:
    """The pre-tokenizer of tokenizer.json that cuts as `row`."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    for cut in row.cuts:
        if cut == SINGLE_DIGITS:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif cut != GPT2_WORDS:
            steps.append(pre_tokenizers.Split(Regex(cut), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=GPT2_WORDS in row.cuts))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
