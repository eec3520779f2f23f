"""Which of llama.cpp's pre-tokenizers cuts text exactly as a tokenizer.json does?

A name is chosen only if what tokenizer.json says is, rule for rule, what that name stands for: a guess would load, and
quietly tokenise wrongly.
"""

from __future__ import annotations

from typing import Any

from irlab.errors import InputError
from irlab.pretokenizers import CONTRACTIONS, GPT2_WORDS, PRE_TOKENIZERS, SINGLE_DIGITS, PreTokenizer

Json = dict[str, Any]


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
    return regex.replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", CONTRACTIONS)
