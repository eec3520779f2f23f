"""How well a causal language model of any Hugging Face directory predicts a text, in bits per byte.

    python tools/bits_per_byte.py TEXT MODEL_DIR [MODEL_DIR ...]

Bits per byte do not depend on the tokenizer, so models with different vocabularies compare. The protocol:

* The whole text is tokenised once, without special tokens; it must decode to itself, so that every byte is paid for.
* It is read in windows of the model's full context (or ``--window`` tokens) that overlap by half. A token is scored in
  the first window that has half a window of context before it; the tokens of the first window are all scored.
* Each window opens with the model's BOS token (``--no-bos`` leaves it out, except before the very first token, which
  must have something before it).
* The text is one stream: neither model is told where a story ends. ``--stories`` cuts it before every paragraph that
  begins with "Once upon a time" and scores each part from its own BOS.
* ``--squeeze`` removes blank lines first.

The figure is the sum of -log2 p over all tokens, divided by the bytes of the text in UTF-8. Computed in float32.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def windows(ids: list[int], size: int) -> Iterator[tuple[list[int], int]]:
    """Windows of at most ``size`` tokens that overlap by half, each with the number of its last tokens to score."""
    begin, scored = 0, 0
    while scored < len(ids):
        window = ids[begin : begin + size]
        yield window, begin + len(window) - scored
        scored = begin + len(window)
        begin += size // 2


def negative_log2_likelihood(model: Any, ids: list[int], bos: int, size: int, use_bos: bool, batch: int = 16) -> float:
    """Bits that ``model`` needs for the tokens ``ids``, which follow a BOS that itself costs nothing."""
    rows = []
    for number, (window, count) in enumerate(windows(ids, size - 1)):
        rows.append(([bos, *window] if use_bos or number == 0 else window, count))
    bits = 0.0
    for first in range(0, len(rows), batch):
        group = rows[first : first + batch]
        longest = max(len(row) for row, _ in group)
        # Rows are padded on the right: under a causal mask nothing before the padding can see it.
        padded = torch.tensor([row + [bos] * (longest - len(row)) for row, _ in group])
        with torch.inference_mode():
            log_probs = torch.log_softmax(model(input_ids=padded, use_cache=False).logits.float(), -1)
        gathered = log_probs[:, :-1].gather(2, padded[:, 1:, None])[:, :, 0]
        for index, (row, count) in enumerate(group):
            bits -= gathered[index, len(row) - 1 - count : len(row) - 1].double().sum().item() / math.log(2)
    return bits


def bits_per_byte(directory: Path, text: str, window: int | None, use_bos: bool, by_story: bool) -> tuple[float, int]:
    """Bits per byte of ``text`` under the model in ``directory``, and the number of tokens it was read as."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    size = window or model.config.max_position_embeddings
    parts = re.split(r"(?<=\n)(?=Once upon a time)", text) if by_story else [text]
    bits, tokens = 0.0, 0
    for part in parts:
        ids = tokenizer(part, add_special_tokens=False, verbose=False).input_ids
        if tokenizer.decode(ids).removeprefix(" ") != part.removeprefix(" "):
            raise SystemExit(f"{directory}: the tokenizer does not give the text back, so its bytes cannot be counted")
        bits += negative_log2_likelihood(model, ids, model.config.bos_token_id, size, use_bos)
        tokens += len(ids)
    return bits / len(text.encode()), tokens


def main() -> None:
    """Prints a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--window", type=int, help="tokens a window, BOS included (default: the model's full context)")
    parser.add_argument("--no-bos", action="store_true", help="do not open each window with BOS")
    parser.add_argument("--stories", action="store_true", help='cut the text before each "Once upon a time"')
    parser.add_argument("--squeeze", action="store_true", help="remove blank lines")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = args.text.read_text(encoding="utf-8")
    if args.squeeze:
        text = re.sub(r"\n+", "\n", text)
    print(f"{args.text.name}: {len(text.encode()):,} bytes")
    for directory in args.models:
        figure, tokens = bits_per_byte(directory, text, args.window, not args.no_bos, args.stories)
        print(f"{directory.name}: {figure:.4f} bits per byte, {tokens:,} tokens", flush=True)


if __name__ == "__main__":
    main()
