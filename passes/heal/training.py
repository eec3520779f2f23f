"""How is the student trained? AdamW in steps that follow from the seed alone, kept on a shelf, so that a run that was
killed goes on and ends in the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from irlab.cache import Shelf

_STATE: Final = "state"
_KEEP_SECONDS: Final = 60.0
_WARM_UP, _FLOOR = 0.05, 0.05
_MAX_NORM: Final = 1.0

Leaves = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Schedule:
    """`steps` steps under a rate that rises to `peak` in the first twentieth and falls as a cosine to a twentieth."""

    steps: int
    peak: float

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        warm = max(1, round(_WARM_UP * self.steps))
        if step < warm:
            return self.peak * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.peak * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass
class Training:
    """`leaves`, changed in place so that `loss` of a batch falls. What happened is in `losses`, a number a step."""

    leaves: Leaves
    loss: Callable[[int], torch.Tensor]
    batches: int
    schedule: Schedule
    seed: int
    shelf: Shelf
    losses: list[float] = field(default_factory=list)

    def run(self) -> Iterator[None]:
        """All steps that are left; one a turn. Raises FloatingPointError where the loss is no number."""
        optimizer = torch.optim.AdamW(
            list(self.leaves.values()), lr=self.schedule.peak, betas=(0.9, 0.95), weight_decay=0.0, foreach=False
        )
        self._resume(optimizer)
        yield from (None for _ in self.losses)
        kept = time.monotonic()
        while len(self.losses) < self.schedule.steps:
            self._step(optimizer)
            if time.monotonic() - kept > _KEEP_SECONDS:
                self._keep(optimizer)
                kept = time.monotonic()
            yield

    def forget(self) -> None:
        """Delete what was kept for going on."""
        self.shelf.file(_STATE).unlink(missing_ok=True)

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        step = len(self.losses)
        for group in optimizer.param_groups:
            group["lr"] = self.schedule.rate(step)
        loss = self.loss(self._batch(step))
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"the loss is {float(loss.detach())} at step {step + 1}")
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.leaves.values(), _MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.losses.append(float(loss.detach()))

    def _batch(self, step: int) -> int:
        """The batch of a step: each once in every round, in an order of the seed."""
        turn, place = divmod(step, self.batches)
        return int(np.random.default_rng((self.seed, turn)).permutation(self.batches)[place])

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        arrays = {}
        for name, leaf in self.leaves.items():
            moments = optimizer.state[leaf]
            for part, tensor in (("value", leaf), ("first", moments["exp_avg"]), ("second", moments["exp_avg_sq"])):
                arrays[f"{name}/{part}"] = tensor.detach().cpu().numpy()
        self.shelf.put_arrays(_STATE, arrays, {"losses": self.losses})

    def _resume(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.shelf.has(_STATE):
            return
        symbols = self.shelf.symbols(_STATE)
        self.losses[:] = self.shelf.note(_STATE)["losses"]
        for name, leaf in self.leaves.items():
            parts = {
                part: torch.from_numpy(np.array(symbols[f"{name}/{part}"].recipe.read())).to(leaf.device)
                for part in ("value", "first", "second")
            }
            with torch.no_grad():
                leaf.copy_(parts["value"])
            optimizer.state[leaf] = {
                "step": torch.tensor(float(len(self.losses))),
                "exp_avg": parts["first"],
                "exp_avg_sq": parts["second"],
            }
