"""The child process that runs a written directory: a request as JSON on stdin, an answer as JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from irlab.backends.onnx.genai import ACCURACY_KEY, CONFIG_FILE
from irlab.backends.onnx.writer import MODEL_FILE

_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    directory = Path(request["directory"])
    answer: dict[str, Any] = {}
    if request["task"] == "logits":
        session = Session(directory, request["provider"])
        found = {f"p{i}": next(session.steps(p, []))[0] for i, p in enumerate(request["prompts"])}
        np.savez(request["result"], allow_pickle=False, **found)
    elif (directory / CONFIG_FILE).is_file():
        answer["tokens"] = genai_greedy(directory, request["prompt"], request["count"])
    else:
        session = Session(directory, request["provider"])
        answer["tokens"] = session.greedy(request["prompt"], request["count"])
    print(json.dumps(answer))


class Session:
    """A decoder in plain ONNX Runtime, with or without a cache."""

    def __init__(self, directory: Path, provider: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        config = directory / CONFIG_FILE
        if config.is_file():  # run as onnxruntime-genai would
            stated = json.loads(config.read_text("utf-8"))["model"]["decoder"]["session_options"]
            options.add_session_config_entry(ACCURACY_KEY, stated[ACCURACY_KEY])
        self._session = onnxruntime.InferenceSession(str(directory / MODEL_FILE), options, providers=[provider])
        self._inputs = {v.name: v for v in self._session.get_inputs()}
        self._outputs = [v.name for v in self._session.get_outputs()]

    def steps(self, prompt: list[int], more: list[int]) -> Iterator[np.ndarray]:
        """The logits f32[1, tokens, vocab] of `prompt`, then of each token that is put into `more`."""
        cache: dict[str, np.ndarray] = {}
        tokens, past = list(prompt), 0
        while True:
            results = dict(zip(self._outputs, self._session.run(None, self._feed(tokens, past, cache))))
            yield results["logits"].astype(np.float32)
            cache = {name: results[name.replace("past_key_values", "present")] for name in self._cached()}
            fresh = more[-1:]
            past, tokens = (past + len(tokens), fresh) if cache else (0, [*tokens, *fresh])

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """`count` tokens after `prompt`, each the likeliest."""
        chosen: list[int] = []
        for logits in self.steps(prompt, chosen):
            chosen.append(int(logits[0, -1].argmax()))
            if len(chosen) == count:
                break
        return chosen

    def _cached(self) -> list[str]:
        return [name for name in self._inputs if name.startswith("past_key_values.")]

    def _feed(self, tokens: list[int], past: int, cache: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        total = past + len(tokens)
        feed = {"input_ids": np.array([tokens])}
        if "attention_mask" in self._inputs:
            feed["attention_mask"] = np.ones((1, total), np.int64)
        if "position_ids" in self._inputs:
            feed["position_ids"] = np.arange(past, total)[None]
        for name in self._cached():
            info = self._inputs[name]
            _, heads, _, width = info.shape
            feed[name] = cache.get(name, np.zeros((1, heads, 0, width), _NUMPY[info.type]))
        return feed


def genai_greedy(directory: Path, prompt: list[int], count: int) -> list[int]:
    """`count` tokens after `prompt` by onnxruntime-genai, chosen here, because it would stop at an end of text."""
    import onnxruntime_genai as og

    model = og.Model(str(directory))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = og.Generator(model, params)
    chosen: list[int] = []
    fresh = prompt
    while len(chosen) < count:
        generator.append_tokens(fresh)
        fresh = [int(np.asarray(generator.get_logits())[0, -1].argmax())]
        chosen += fresh
    return chosen


if __name__ == "__main__":
    main()
