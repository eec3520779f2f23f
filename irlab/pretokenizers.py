"""The pre-tokenizers that llama.cpp knows by name (`tokenizer.ggml.pre`), and what each cuts text by. A table.

llama.cpp holds the regular expressions itself; the rows come from the "original regex from tokenizer.json" comments in
src/llama-vocab.cpp and from published tokenizer.json files, and each is tested in the real runtime.
"""

from __future__ import annotations

from dataclasses import dataclass

# A cut is a regular expression whose matches become pieces of their own, or one of these.
GPT2_WORDS = "<ByteLevel's own regex>"
SINGLE_DIGITS = "<each digit alone>"

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_GPT4O = _CASED % (f"{CONTRACTIONS}?", f"{CONTRACTIONS}?") + r"|\p{N}{1,3}" + _SLASH_TAIL
_LLAMA3 = rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}{_TAIL}"


@dataclass(frozen=True)
class PreTokenizer:
    """A name of llama.cpp's, the cuts it stands for, and whether whole words in the vocabulary skip the merges.

    remark: where the real runtime was seen to cut otherwise than the expressions say.
    """

    name: str
    cuts: tuple[str, ...]
    ignore_merges: bool = False
    remark: str = ""


_ASCII_CASE = (
    "llama.cpp's form of its expression tells only ASCII capitals from small letters and cuts before combining marks: "
    "ÉCOLE and Hindi words may be cut differently"
)

PRE_TOKENIZERS = (
    PreTokenizer("gpt-2", (GPT2_WORDS,)),
    PreTokenizer("smollm", (SINGLE_DIGITS, GPT2_WORDS)),  # also StarCoder, Command R, Refact
    PreTokenizer("llama-bpe", (_LLAMA3,), ignore_merges=True),  # Llama 3
    PreTokenizer("smaug-bpe", (_LLAMA3,)),  # as Llama 3, with merges; also DBRX, GLM 4
    PreTokenizer("qwen2", (rf"{CONTRACTIONS}|{_WORD}|\p{{N}}{_TAIL}",)),  # Qwen 2, 2.5, 3; StableLM 2
    PreTokenizer(
        "qwen35",
        (
            rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    PreTokenizer(
        "tekken", (_CASED % ("", "") + r"|\p{N}" + _SLASH_TAIL,), ignore_merges=True, remark=_ASCII_CASE
    ),  # Mistral Nemo
    PreTokenizer("gpt-4o", (_GPT4O,), remark=_ASCII_CASE),  # GPT-4o, gpt-oss, Llama 4
    PreTokenizer("tiny_aya", (r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)),
    PreTokenizer(
        "deepseek-v3",
        (
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
            "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
        ),
    ),
    PreTokenizer(
        "seed-coder",
        (
            rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}"
            r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    PreTokenizer("minicpm5", (r"\p{N}{1,3}", rf"{CONTRACTIONS}|{_WORD}|\p{{N}}+{_TAIL}"), ignore_merges=True),
)
