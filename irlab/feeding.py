"""How is a decoder fed, step by step: tokens, mask, positions, and the cache that the step before has left?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Cache:
    """The keys and values [batch, heads, slots, width] of a decoder, and which slots are of tokens (i64[slots]); `seen`
    tokens have been so far."""

    values: dict[str, np.ndarray]
    mask: np.ndarray
    seen: int = 0

    def append(self, values: dict[str, np.ndarray], padding: int, tokens: int, slots: int) -> None:
        """Take what a step has made of the cache: after what was there come `padding` slots of nothing, then `tokens`
        more. Keep the last `slots`; 0: all."""
        held = len(self.mask)
        taken = np.r_[:held, held + padding : held + padding + tokens][-slots:]
        self.values = {name: value[:, :, taken] for name, value in values.items()}
        self.mask = np.r_[self.mask, np.ones(tokens, np.int64)][-slots:]
        self.seen += tokens


class Feeder:
    """Runs a decoder: with a cache or without, with sizes that are fixed or not. Where a size is fixed, what is missing
    of it is padded, and hidden by the mask.

    `inputs`: the shape and NumPy dtype of each input; a size that is no number is free. `run`: results by name.
    """

    def __init__(
        self,
        inputs: Mapping[str, tuple[Sequence[Any], Any]],
        run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    ) -> None:
        self._inputs, self._results_of = inputs, run
        self._batch, self._width = (_fixed(size) for size in self._inputs["input_ids"][0])
        self._slots = next((_fixed(self._inputs[name][0][2]) for name in self._cached()), 0)

    def steps(self, prompt: list[int], more: list[int]) -> Iterator[np.ndarray]:
        """The logits f32[1, tokens, vocab] of `prompt`, then of each token that is put into `more`."""
        cache = Cache({name: self._empty(name) for name in self._cached()}, np.zeros(self._slots, np.int64))
        tokens = list(prompt)
        while True:
            yield self._logits(tokens, cache)
            tokens = more[-1:] if cache.values else [*tokens, *more[-1:]]

    def _logits(self, tokens: list[int], cache: Cache) -> np.ndarray:
        width = self._width or len(tokens)
        if not cache.values:
            padded = [*tokens, *[0] * (width - len(tokens))]
            mask = np.arange(width) < len(tokens)
            return self._run(padded, mask.astype(np.int64), np.arange(width), {})["logits"][:1, : len(tokens)]
        parts = []
        for start in range(0, len(tokens), width):
            chunk = tokens[start : start + width]
            missing = width - len(chunk)  # before the tokens, so that the cache ends with the last
            mask = np.concatenate([cache.mask, np.repeat([0, 1], [missing, len(chunk)])])
            positions = np.maximum(np.arange(width) - missing, 0) + cache.seen
            results = self._run([*[0] * missing, *chunk], mask, positions, cache.values)
            present = {name: results[name.replace("past_key_values", "present")] for name in cache.values}
            cache.append(present, missing, len(chunk), self._slots)
            parts.append(results["logits"][:1, missing:])
        return np.concatenate(parts, axis=1)

    def fed_steps(self, prompt: list[int]) -> Iterator[None]:
        """A step for the prompt, then one for each token after it, which is always the same."""
        more: list[int] = []
        for _ in self.steps(prompt, more):
            yield
            more.append(1)

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

    def _empty(self, name: str) -> np.ndarray:
        (_, heads, _, width), dtype = self._inputs[name]
        return np.zeros((self._batch or 1, heads, self._slots, width), dtype)

    def _run(
        self, tokens: list[int], mask: np.ndarray, positions: np.ndarray, cache: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        feed = {"input_ids": np.array(tokens), "attention_mask": mask, "position_ids": positions}
        rows = {name: np.tile(row, (self._batch or 1, 1)) for name, row in feed.items() if name in self._inputs}
        results = self._results_of(rows | dict(cache))
        return results | {"logits": results["logits"].astype(np.float32)}


def _fixed(size: Any) -> int:
    """A size that is a number; 0 for one that is not known."""
    return size if isinstance(size, int) else 0
