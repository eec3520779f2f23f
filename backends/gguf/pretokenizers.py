"""Which of llama.cpp's pre-tokenizers cuts text exactly as a tokenizer.json does?

llama.cpp knows byte-level BPE tokenizers by a name (`tokenizer.ggml.pre`) and holds the regular expressions itself.
A name is chosen only if what tokenizer.json says is, rule for rule, what that name stands for; the rows come from the
"original regex from tokenizer.json" comments in src/llama-vocab.cpp and from published tokenizer.json files, and each
is tested in the real runtime. A guess would load, and quietly tokenise wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from irlab.errors import InputError

Json = dict[str, Any]

# A cut is a regular expression whose matches become pieces of their own, or one of these.
GPT2_WORDS = "<ByteLevel's own regex>"
SINGLE_DIGITS = "<each digit alone>"

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_GPT4O = _CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?") + r"|\p{N}{1,3}" + _SLASH_TAIL
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}{_TAIL}"


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
    PreTokenizer("qwen2", (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{_TAIL}",)),  # Qwen 2, 2.5, 3; StableLM 2
    PreTokenizer(
        "qwen35",
        (
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
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
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}"
            r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    PreTokenizer("minicpm5", (r"\p{N}{1,3}", rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+{_TAIL}"), ignore_merges=True),
)


def find_pretokenizer(tokenizer: Json, where: str) -> PreTokenizer:
    """The row whose name is the `tokenizer.ggml.pre` of a byte-level BPE tokenizer.json.

    Raises InputError, quoting what tokenizer.json cuts by, if no row is exactly that.
    """
    cuts = tuple(_cuts(tokenizer.get("pre_tokenizer"), where))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    for row in PRE_TOKENIZERS:
        if (row.cuts, row.ignore_merges) == (cuts, ignore_merges):
            return row
    skipping = " with ignore_merges" if ignore_merges else ""
    raise InputError(
        f"{where}: llama.cpp has no pre-tokenizer that cuts{skipping} by {' then '.join(cuts) or 'nothing'}",
        "pre=NAME takes one of llama.cpp's anyway, such as pre=llama-bpe; text that they cut differently is tokenised "
        "differently",
    )


def _cuts(node: Json | None, where: str) -> list[str]:
    """The cuts of a `pre_tokenizer` node, in order."""
    if node is None:
        return []
    kind = node.get("type")
    if kind == "Sequence":
        return [cut for child in node["pretokenizers"] for cut in _cuts(child, where)]
    if kind == "ByteLevel":
        if node.get("add_prefix_space"):
            raise InputError(f"{where}: a byte-level tokenizer that adds a leading space has no form in GGUF")
        return [GPT2_WORDS] if node.get("use_regex", True) else []
    if kind == "Digits" and node.get("individual_digits"):
        return [SINGLE_DIGITS]
    if kind == "Split" and "Regex" in node["pattern"]:
        # Removing what does not match is isolating what does, for expressions that match every character.
        how = (node["behavior"], bool(node.get("invert")))
        if how in (("Isolated", False), ("Removed", True)):
            return [_canonical(node["pattern"]["Regex"])]
    return [f"<{node}>"]


def _canonical(regex: str) -> str:
    """One spelling of the contractions, which published tokenizers spell in two ways."""
    return regex.replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTIONS)
