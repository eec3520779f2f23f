"""How more training text is made: stories sampled from a teacher (a story model in a Hugging Face directory).

The teacher runs as a batch of endless streams. A stream starts at BOS and is never stopped: when a story ends the
teacher itself opens the next one with BOS, as in the token stream it was trained on. When the context is full it is cut
back to its last ``keep`` tokens and read again, which is again what the teacher saw in training (windows that start
anywhere in a story). Streams stay aligned, so there is no padding and no ragged bookkeeping.

Every block of new tokens is drawn from its own seed and saved, so a run that was killed resumes to the same text.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache, DynamicLayer

KEEP = 96  # tokens of context that survive when a window is full
CHUNK = 32  # the cache grows by so many positions: attention over a dense buffer is 3x faster than over slices of one


@dataclass(frozen=True)
class SamplingPlan:
    """What to draw: ``streams`` x ``blocks`` blocks at ``temperature``; ``seed`` fixes every token."""

    streams: int = 256
    blocks: int = 44
    temperature: float = 1.0
    seed: int = 1


class _DenseLayer(DynamicLayer):
    """A cache layer whose buffers stay dense: unused positions at the end are masked instead of sliced away."""

    used: int = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys = key_states.new_zeros(*key_states.shape[:2], 0, key_states.shape[3])
            self.values = torch.zeros_like(self.keys)
        assert self.keys is not None and self.values is not None
        end = self.used + key_states.shape[2]
        if end > self.keys.shape[2]:
            more = -(-end // CHUNK) * CHUNK - self.keys.shape[2]
            pad = self.keys.new_zeros(*self.keys.shape[:2], more, self.keys.shape[3])
            self.keys, self.values = torch.cat([self.keys, pad], 2), torch.cat([self.values, pad], 2)
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.used


def _dense_cache() -> DynamicCache:
    cache = DynamicCache()
    cache.layers, cache.layer_class_to_replicate = [], _DenseLayer
    return cache


def _causal_mask(past: int, new: int, device: torch.device) -> torch.Tensor:
    """Additive mask, bf16[1, 1, new, buffer], over the dense buffer that holds past + new positions."""
    buffer = -(-(past + new) // CHUNK) * CHUNK
    allowed = torch.arange(buffer, device=device)[None, :] <= torch.arange(past, past + new, device=device)[:, None]
    zeros = torch.zeros(new, buffer, dtype=torch.bfloat16, device=device)
    return zeros.masked_fill_(~allowed, float("-inf"))[None, None]


class Sampler:
    """Draws token streams from one teacher. Only tokens that occur in ``text`` are drawn: a story model with a general
    vocabulary spends most of its output layer on tokens that no story holds (4,397 of 32,000 occur in 1 MB)."""

    def __init__(self, teacher: Path, text: str, device: torch.device) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(teacher)
        model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16, attn_implementation="eager")
        self.body = model.to(device).eval().model
        self.device = device
        self.bos: int = model.config.bos_token_id
        self.window: int = model.config.max_position_embeddings
        ids = {self.bos, *self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids}
        self.vocabulary = torch.tensor(sorted(ids), device=device)
        self.head = model.lm_head.weight.detach()[self.vocabulary].T.contiguous()

    @torch.inference_mode()
    def block(self, context: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
        """Fills the window: context i64[streams, n] -> new tokens i64[streams, window - n]. Random numbers are drawn
        on the CPU, the same ones for every device."""
        cache, new, step = _dense_cache(), [], context.to(self.device)
        for past in range(context.shape[1], self.window):
            seen = past - step.shape[1]
            hidden = self.body(
                input_ids=step,
                attention_mask=_causal_mask(seen, step.shape[1], self.device),
                position_ids=torch.arange(seen, past, device=self.device)[None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            cumulative = torch.softmax((hidden @ self.head).float() / temperature, -1).cumsum(-1)
            # Inverse of the distribution function: one random number a stream, where Gumbel noise needs a vocabulary's.
            draw = torch.rand(len(step), 1, generator=generator).to(self.device) * cumulative[:, -1:]
            index = torch.searchsorted(cumulative, draw, right=True).clamp_(max=len(self.vocabulary) - 1)
            step = self.vocabulary[index]
            new.append(step)
        return torch.cat(new, 1).cpu()

    def stories(self, tokens: np.ndarray) -> Iterable[str]:
        """Finished stories of streams u16[streams, n]; the unfinished last one of a stream is dropped."""
        for stream in tokens:
            ends = np.flatnonzero(stream == self.bos)
            for begin, end in itertools.pairwise(ends):
                story: str = self.tokenizer.decode(stream[begin + 1 : end].tolist()).strip()
                if story:
                    yield story


def sample_stories(teacher: Path, text: str, plan: SamplingPlan, state: Path, device: torch.device) -> list[str]:
    """Stories drawn from ``teacher`` by ``plan``. ``state`` (a .npy file) holds the tokens so far; it is resumed."""
    sampler = Sampler(teacher, text, device)
    tokens = np.full((plan.streams, 1), sampler.bos, np.uint16)
    if state.exists():
        tokens = np.load(state, allow_pickle=False)
        if tokens.shape[0] != plan.streams:
            raise ValueError(f"{state}: {tokens.shape[0]} streams, the plan wants {plan.streams}; remove the file")
    lengths = _block_ends(sampler.window, plan.blocks)
    done = lengths.index(tokens.shape[1]) if tokens.shape[1] in lengths else -1
    if done < 0:
        raise ValueError(f"{state}: {tokens.shape[1]} tokens a stream is no block border of this plan; remove the file")
    for number in range(done, plan.blocks):
        start = time.monotonic()
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + number)
        context = torch.from_numpy(tokens[:, -KEEP:].astype(np.int64))
        new = sampler.block(context, plan.temperature, generator).numpy().astype(np.uint16)
        tokens = np.concatenate([tokens, new], 1)
        _save(state, tokens)
        rate = new.size / (time.monotonic() - start)
        print(f"sampling: block {number + 1}/{plan.blocks}, {tokens.size:,} tokens, {rate:,.0f} tokens/s", flush=True)
    return list(sampler.stories(tokens[:, : lengths[plan.blocks]]))


def _block_ends(window: int, blocks: int) -> list[int]:
    """Tokens a stream holds after 0, 1, 2 ... blocks."""
    ends = [1]
    for _ in range(blocks):
        ends.append(ends[-1] + window - min(ends[-1], KEEP))
    return ends


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, array, allow_pickle=False)
    os.replace(partial, path)
