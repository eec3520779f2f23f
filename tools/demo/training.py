"""How the demo model is trained: architecture, optimiser, schedule, and a run that can be killed and resumed."""

from __future__ import annotations

import itertools
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from .stories import Corpus

Optimizers = dict[str, torch.optim.Optimizer]


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the defaults are the demo model's (3.4 M parameters). Widths should be multiples of 256, so
    that ggml's K types apply to every matrix."""

    hidden: int = 256
    ffn: int = 768
    layers: int = 4
    vocabulary: int = 1024
    context: int = 512


def architecture(shape: Shape) -> LlamaConfig:
    """Llama with fewer key than query heads, so that grouped attention is exercised."""
    if shape.hidden % 128:
        raise ValueError(f"a width of {shape.hidden} makes no pairs of heads of 64; give --hidden a multiple of 128")
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=shape.hidden // 128,
        head_dim=64,
        max_position_embeddings=shape.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        attention_bias=False,
        mlp_bias=False,
    )


@dataclass(frozen=True)
class Schedule:
    """Learning rates over ``steps``: a linear warm-up, a plateau, a linear decay to zero over the last part.

    Runs that differ in ``steps`` alone share their checkpoints up to the first decay, so a run can be cut short there.
    """

    steps: int
    batch: int = 16
    muon: float = 6e-3
    adam: float = 4e-3
    warmup: int = 40
    decay: float = 0.6
    save_every: int = 50

    def scale(self, step: int) -> float:
        """The factor on the learning rates at ``step`` (from 0)."""
        up = (step + 1) / self.warmup
        down = (self.steps - step) / max(1.0, self.decay * self.steps)
        return min(1.0, up, down)


def _optimizers(model: LlamaForCausalLM, schedule: Schedule) -> Optimizers:
    """Muon for the matrices of the layers, AdamW for embeddings and norms, which Muon is not made for."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    return {
        "muon": torch.optim.Muon(matrices, lr=schedule.muon, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        "adam": torch.optim.AdamW(others, lr=schedule.adam, betas=(0.9, 0.98), weight_decay=0.0),
    }


def train(
    corpus: Corpus, shape: Shape, schedule: Schedule, seed: int, state: Path, device: torch.device
) -> LlamaForCausalLM:
    """The trained model, f32. ``state`` (a .safetensors file) holds the last checkpoint; it is resumed if it exists."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(architecture(shape)).to(device).train()
    optimizers = _optimizers(model, schedule)
    run = json.dumps({"shape": vars(shape), "seed": seed, "schedule": vars(schedule)})
    begin = _restore(model, optimizers, run, state) if state.exists() else 0
    losses: list[torch.Tensor] = []  # read when printed: a GPU would wait for each
    clock = time.monotonic()
    batches = itertools.islice(corpus.batches(shape.context, schedule.batch), begin, schedule.steps)
    for step, batch in enumerate(batches, begin):
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = schedule.scale(step) * (schedule.muon if name == "muon" else schedule.adam)
        ids = torch.from_numpy(batch.astype(np.int64)).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if (step + 1) % 20 == 0 or step + 1 == schedule.steps:
            mean = torch.stack(losses).mean().item()
            rate = len(losses) * ids.numel() / (time.monotonic() - clock)
            print(f"training: step {step + 1}/{schedule.steps}, loss {mean:.4f}, {rate:,.0f} tokens/s", flush=True)
            losses, clock = [], time.monotonic()
        if (step + 1) % schedule.save_every == 0 and step + 1 < schedule.steps:
            _save(model, optimizers, run, step + 1, state)
    return model.cpu().eval()


def _save(model: LlamaForCausalLM, optimizers: Optimizers, run: str, step: int, path: Path) -> None:
    """Writes weights and optimiser states as plain tensors (a pickle would have to be trusted when it is read)."""
    tensors = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    for name, optimizer in optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": value for key, value in entries.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"run": run, "step": str(step)})
    os.replace(partial, path)


def _restore(model: LlamaForCausalLM, optimizers: Optimizers, run: str, path: Path) -> int:
    """Loads a checkpoint of the same run and returns the number of steps done."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if metadata["run"] != run:
            raise ValueError(f"{path} belongs to a run with other settings ({metadata['run']}); remove the file")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a safe_open is no mapping)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model/{name}"])
    for name, optimizer in optimizers.items():
        state = optimizer.state_dict()
        for key, value in tensors.items():
            owner, index, *entry = key.split("/")
            if owner == name:
                state["state"].setdefault(int(index), {})[entry[0]] = value
        optimizer.load_state_dict(state)
    return int(metadata["step"])
