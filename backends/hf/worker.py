"""The child process of transformers_runtime.py: a JSON request a line on stdin, a JSON answer a line on stdout.

It imports torch and transformers, and nothing of irlab.
"""

from __future__ import annotations

import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=1)
def load(path: str) -> Any:
    """The model in a directory, in its stored dtype. Raises ValueError if weights are missing or left over."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        path, dtype="auto", local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(what):
            raise ValueError(f"{what.replace('_', ' ')}: {', '.join(sorted(map(str, report[what])))}")
    return model.eval()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Serve one request: {"prompts", "to"} saves the logits of each prompt as to/N.npy, f32[tokens, vocab];
    {"prompt", "count"} decodes greedily. Without a cache: in half precision it would round otherwise."""
    import numpy as np
    import torch

    model = load(request["model"])
    with torch.inference_mode():
        if "prompts" in request:
            for i, prompt in enumerate(request["prompts"]):
                logits = model(torch.tensor([prompt]), use_cache=False).logits[0]
                np.save(Path(request["to"], f"{i}.npy"), logits.float().numpy(), allow_pickle=False)
            return {}
        tokens: list[int] = []
        for _ in range(request["count"]):
            step = model(torch.tensor([request["prompt"] + tokens]), use_cache=False)
            tokens.append(int(step.logits[0, -1].argmax()))
        return {"tokens": tokens}


def main() -> None:
    """Serve until stdin closes. What libraries print goes to stderr, so that stdout carries answers only."""
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:
            first = next((text for text in str(error).splitlines() if text.strip()), "")
            reply = {"error": f"{type(error).__name__}: {first}"}
        print(json.dumps(reply), file=stdout, flush=True)


if __name__ == "__main__":
    main()
