"""How good is a model on text, and how far is it from what it was? Perplexity, KL divergence, top-1 agreement.

Both models run layer by layer over all of the text, so that each weight is read once, and only their last hidden states
wait in memory; logits exist for one batch at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .activations import Activations
from .calibration import Batch, NewIds, Sample
from .errors import InputError
from .ir import Graph, Module
from .passmgr import Instrument
from .walk import Walk

if TYPE_CHECKING:
    from .emission import Emitted
    from .passmgr import Context, Pass, PassRecord
    from .target import Runtime

_LOGIT_ROWS = 512
"""Distributions are compared so many at a time."""


@dataclass
class Quality:
    """What was measured on `tokens` positions. `kl` and `top1` compare with the original, and are None without one.

    `perplexity` is exp of the mean negative log-likelihood of the next token; `kl` the mean of KL(original || model);
    `top1` the share of positions where both prefer the same token. `predicted_kl` is what a pass had foretold.
    """

    tokens: int = 0
    perplexity: float = math.nan
    kl: float | None = None
    top1: float | None = None
    predicted_kl: float | None = None

    def as_dict(self) -> dict[str, float]:
        """For reports: what was measured."""
        found = {"perplexity": self.perplexity, "kl": self.kl, "top1": self.top1, "predicted_kl": self.predicted_kl}
        return {name: value for name, value in found.items() if value is not None}

    def __str__(self) -> str:
        said = f"perplexity {self.perplexity:.4g}"
        if self.kl is not None and self.top1 is not None:
            foretold = "" if self.predicted_kl is None else f" (predicted {self.predicted_kl:.4g})"
            said += f", KL {self.kl:.4g}{foretold}, top-1 agreement {self.top1:.2%}"
        return f"{said} ({self.tokens:,} tokens)"


@dataclass
class Tally:
    """Sums over positions; `quality` makes means of them."""

    positions: int = 0
    predicted: int = 0
    loss: float = 0.0
    kl: float = 0.0
    agree: int = 0
    compared: int = 0

    def add(self, logits: torch.Tensor, ids: torch.Tensor, original: torch.Tensor | None = None) -> None:
        """Take in logits[samples, length, vocab] after the tokens `ids`[samples, length], and the original's logits."""
        following = torch.full_like(ids, -1)
        following[:, :-1] = ids[:, 1:]
        flat, targets = logits.reshape(-1, logits.shape[-1]), following.reshape(-1).to(logits.device)
        reference = None if original is None else original.reshape(-1, original.shape[-1])
        for start in range(0, len(flat), _LOGIT_ROWS):
            at = slice(start, start + _LOGIT_ROWS)
            q = torch.log_softmax(flat[at].float(), -1)
            wanted = targets[at]
            known = wanted >= 0
            self.loss -= float(q[known].gather(1, wanted[known, None]).double().sum())
            self.predicted += int(known.sum())
            self.positions += len(q)
            if reference is not None:
                p = torch.log_softmax(reference[at].float(), -1)
                self.kl += float((p.exp() * (p - q)).sum(-1).double().sum())
                self.agree += int((p.argmax(-1) == q.argmax(-1)).sum())
                self.compared += len(q)

    def quality(self) -> Quality:
        """The means."""
        found = Quality(self.positions, math.exp(min(700.0, self.loss / max(1, self.predicted))))
        if self.compared:
            found.kl, found.top1 = max(0.0, self.kl / self.compared), self.agree / self.compared
        return found


def quality(
    module: Module | Logits, batches: Sequence[Batch], ctx: Context, original: Module | Logits | None = None
) -> Quality:
    """Measure `module` on batches of input_ids, against `original` if it is given; `Logits` of either on the same
    batches are not computed again. Raises InputError for a graph that does not predict tokens."""
    tally = Tally()
    with ExitStack() as stack:
        models = [module] if original is None else [module, original]
        streams = [
            m if isinstance(m, Logits) else Logits(m.graph, batches, ctx, stack.enter_context(Activations()))
            for m in models
        ]
        total = sum(stream.steps for stream in streams) + len(batches)

        def work() -> Iterator[None]:
            for stream in streams:
                yield from stream.approach()
            for batch, logits in zip(batches, zip(*(stream.logits() for stream in streams))):
                tally.add(logits[0], torch.as_tensor(batch["input_ids"]), *logits[1:])
                yield

        for _ in ctx.progress.track(work(), "evaluating", total):
            pass
    return tally.quality()


class Logits:
    """The logits of a model for each batch: `approach` runs all layers but the last, `logits` gives what that says.

    What the last layer reads is kept in `store`, so that logits can be asked for again; they themselves take too much.
    """

    def __init__(self, graph: Graph, batches: Sequence[Batch], ctx: Context, store: Activations) -> None:
        if "logits" not in graph.outputs:
            raise InputError("the graph predicts no tokens: it has no output 'logits'", "evaluate a language model")
        self._walk = Walk(graph, batches, ctx.device, store)
        # What comes after the layer that gives the logits is not needed.
        self._last = next(layer for layer in self._walk.layers if "logits" in layer.outputs)
        self._ahead = self._walk.layers[: self._last.index]

    @property
    def steps(self) -> int:
        """How many steps `approach` will take."""
        return self._walk.batches * len(self._ahead)

    def approach(self) -> Iterator[None]:
        """Run up to the last layer, unless that is done; a step for each batch and layer."""
        while self._ahead:
            yield from self._walk.advance(self._ahead[0])
            del self._ahead[0]

    def logits(self) -> Iterator[torch.Tensor]:
        """The logits of each batch in turn."""
        graph = self._last.graph({"logits": self._last.outputs["logits"]})
        for results in self._walk.outputs(self._last, graph):
            yield results["logits"]


class EvaluateEach(Instrument):
    """Measures the model before the first lossy pass and after each of them; `note` is told (name, quality).

    Exact passes before the first lossy one do not count: what they make is the original that later ones are held to.
    Where tokens go, the original too is held to those that are left.
    """

    def __init__(self, sample: Sample, ctx: Context, note: Callable[[str, Quality], None]) -> None:
        self._sample, self._ctx, self._note = sample, ctx, note
        self._batches: list[Batch] | None = None
        self._original: Logits | None = None
        self._new_ids: NewIds | None = None
        self._depth = 0

    def before_pass(self, step: Pass, module: Module) -> None:
        self._depth += 1
        if self._original is None and step.exactness == "lossy":
            self._note("before", self._measured(module))

    def after_pass(self, step: Pass, module: Module, record: PassRecord) -> None:
        self._depth -= 1
        if step.exactness == "lossy" and not self._depth:
            if self._ctx.new_ids is not self._new_ids:
                self._renumber(module)
            found = quality(module, self.batches(module), self._ctx, self._original)
            found.predicted_kl = record.metrics.get("predicted_kl")
            record.metrics.update(found.as_dict())
            self._note(f"after {step}", found)

    def pass_failed(self, step: Pass, module: Module, error: Exception) -> None:
        self._depth -= 1

    def batches(self, module: Module) -> list[Batch]:
        """The text as inputs."""
        if self._batches is None:
            self._batches = self._ctx.batches(self._sample, module)
        return self._batches

    def _renumber(self, module: Module) -> None:
        """Compare with what the original says of the tokens that are left, on text that is cut into those."""
        original = self._ctx.manager.original
        assert original is not None
        self._new_ids, self._batches = self._ctx.new_ids, None
        self._original = Logits(original.clone().graph, self.batches(module), self._ctx, Activations())

    def finish(self, module: Module) -> None:
        """After all passes: measure a module that no lossy pass changed."""
        if self._original is None:
            self._note("model", self._measured(module))

    def _measured(self, module: Module) -> Quality:
        """The quality of `module`, which from now on is the original."""
        batches = self.batches(module)
        self._original = Logits(module.clone().graph, batches, self._ctx, Activations())
        return quality(self._original, batches, self._ctx)

    def measure_output(self, emitted: Emitted) -> None:
        """Measure what was written, in its runtime. Raises InputError where that cannot be run."""
        runtime, out = emitted.runtime, emitted.out
        reason = "it has no runtime" if runtime is None else runtime.unavailable()
        if runtime is None or reason or self._original is None:
            raise InputError(f"{out} cannot be evaluated in {emitted.target}: {reason}")
        assert self._batches is not None, "the original was measured on them"
        found = runtime_quality(runtime, out, self._batches, self._ctx, self._original)
        self._note(f"{out} in {runtime.name}", found)


def runtime_quality(
    runtime: Runtime, out: Path, batches: Sequence[Batch], ctx: Context, original: Module | Logits
) -> Quality:
    """Measure what was written to `out`, run in the real runtime, against `original` in the interpreter."""
    tally = Tally()
    with Activations() as store:
        stream = original if isinstance(original, Logits) else Logits(original.graph, batches, ctx, store)

        def work() -> Iterator[None]:
            yield from stream.approach()
            for batch, expected in zip(batches, stream.logits()):
                prompts = [row.tolist() for row in batch["input_ids"]]
                for prompt, row, found in zip(prompts, expected, runtime.logits(out, prompts)):
                    given = torch.from_numpy(found)[None, :, : row.shape[-1]]
                    tally.add(given, torch.tensor([prompt]), row[None])
                yield

        for _ in ctx.progress.track(work(), f"evaluating in {runtime.name}", stream.steps + len(batches)):
            pass
    return tally.quality()
