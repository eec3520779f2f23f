"""The heal pass: distillation from the model as it was before the first lossy pass."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import irlab
from irlab.cache import Shelf
from irlab.calibration import ALL, Batch, Sample
from irlab.errors import InputError, UsageError
from irlab.ir import Graph, Module
from irlab.options import Bounds
from irlab.passes.heal.trainable import matrices, numbers, trainable, training_bytes
from irlab.passmgr import Context, Pass
from irlab.weight_uses import replace_weights
from irlab.weights import pending, static_shape

_LEAST_BATCHES: Final = 3
HEALED: Final = "healed"
"""The weights on the shelf that a run leaves."""


@dataclass(frozen=True)
class Heal(
    Pass,
    name="heal",
    exactness="lossy",
    requires={"fuse": "it trains the weights of nn ops"},
):
    """Trains what is left of a model to predict what it predicted before: distillation of logits and hidden states.

    The teacher is the model before the first lossy pass of the pipeline (or `teacher`, a model's path); the student
    what later passes have left of it. Both run in the interpreter, in f32, on the calibration text or on `data`, a text
    of its own. A step is one batch of about 2,048 tokens; one batch in 16 is held out and measured before and after.
    Encoded weights stay as they are, what is zero in a matrix of many zeros stays zero, and everything else may change.

    `steps`: how many. `rate`: the peak of the learning rate (none: 0.0002, with `lora` 0.003), warmed up for a
    twentieth of the steps and lowered as a cosine. `lora`: train adapters of rank `rank` instead of whole matrices, and
    merge them at the end; needs a quarter of the memory. `logits`, `hidden`, `text`: the weights of three losses: KL to
    the teacher's predictions (softened by `temperature`), relative error of what flows between layers of the same
    name, cross-entropy of the text. `recompute`: compute each layer again on the way back instead of keeping its
    activations.

    The run is deterministic, and one that was killed goes on from what it kept (about once a minute). The loss of each
    step is in the report. Sources: Hinton et al. 2015 (1503.02531), TinyBERT (1909.10351), LoRA (2106.09685), Minitron
    (2407.14679) for distillation after pruning.
    """

    steps: Annotated[int, Bounds(1)] = 200
    data: str | None = None
    lora: bool = False
    rank: Annotated[int, Bounds(1)] = 16
    teacher: str = "original"
    rate: Annotated[float, Bounds(above=0)] | None = None
    logits: Annotated[float, Bounds(0)] = 1.0
    hidden: Annotated[float, Bounds(0)] = 1.0
    text: Annotated[float, Bounds(0)] = 0.0
    temperature: Annotated[float, Bounds(above=0)] = 1.0
    recompute: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logits + self.hidden + self.text <= 0:
            raise UsageError("heal: logits, hidden and text are 0, so there is no loss", "give one of them more")

    def computes(self, ctx: Context) -> bool:
        return True

    def run(self, module: Module, ctx: Context) -> None:
        weights = trainable(module.graph, self.lora)
        if not weights:
            raise InputError("heal: every weight is encoded, nothing is left to train", "run heal before quantize")
        if self.lora:
            self._require_adapters(module.graph)
        if self.teacher == "original":
            _require_change(ctx)
        if ctx.is_plan:
            if self._is_text_known(ctx):
                self._batches(module, ctx)
            replace_weights(module.graph, pending({symbol.name: symbol for symbol in weights}))
            return
        from irlab.collect import module_key

        teacher = self._teacher(ctx)
        _require_same_outputs(module, teacher)
        batches = self._batches(module, ctx)
        _require_memory(module, teacher, self.rank if self.lora else None)
        key = module_key(module, batches, ctx, self.resolved_text(), teacher.graph)
        shelf = Shelf.open(ctx.cache, "healed", key)
        if not shelf.has(HEALED):
            from irlab.passes.heal.distillation import distil

            steps = distil(self, module, teacher, batches, shelf, ctx)
            for _ in ctx.progress.track(steps, "heal", self.steps):
                pass
        note = shelf.note(HEALED)
        healed = shelf.symbols(HEALED)
        replace_weights(module.graph, healed)
        ctx.note_weights_computed(len(healed))
        ctx.note_rewrites({"train": len(healed)})
        ctx.record.metrics.update(note["metrics"])
        ctx.record.series["loss"] = note["losses"]

    def _require_adapters(self, graph: Graph) -> None:
        weights = graph.weights()
        widest = max((min(static_shape(weights[name].type)) for name in matrices(graph)), default=0)
        if 2 * self.rank >= widest:
            raise InputError(f"heal: adapters of rank {self.rank} save nothing anywhere", "give less, or lora=false")

    def _teacher(self, ctx: Context) -> Module:
        if self.teacher != "original":
            return irlab.run(irlab.load(self.teacher), "fuse")
        return _require_change(ctx)

    def _is_text_known(self, ctx: Context) -> bool:
        """Whether the text to train on is there before anything is computed."""
        if self.data is not None or ctx.calibration is None:
            return self.data is not None
        source = ctx.calibration.source  # perhaps an array, which compares number by number
        return not (isinstance(source, str) and source == "self")

    def _batches(self, module: Module, ctx: Context) -> list[Batch]:
        if self.data is None:
            batches = ctx.calibration_batches(module)
        else:
            length = ctx.calibration.length if ctx.calibration is not None else 512
            batches = ctx.batches(Sample(self.data, tokens=ALL, length=length), module)
        if len(batches) < _LEAST_BATCHES:
            hint = "give a longer text, or more of it with --calibration-tokens"
            raise InputError(f"heal: {size(batches):,} tokens are too few to train on", hint)
        return batches


def _require_change(ctx: Context) -> Module:
    """The model before the first lossy pass; refuses to heal where there was none."""
    original = ctx.manager.original
    if original is None:
        raise InputError("heal: no pass has changed what the model computes", "give teacher=MODEL to learn from")
    return original


def size(batches: Sequence[Batch]) -> int:
    """How many tokens (of a table: numbers of its first column)."""
    return sum(next(iter(batch.values())).size for batch in batches)


def _require_same_outputs(student: Module, teacher: Module) -> None:
    mine, theirs = student.graph.outputs, teacher.graph.outputs
    if "logits" in mine and "logits" in theirs:
        tokens = [outputs["logits"].type.shape[-1] for outputs in (mine, theirs)]
        if tokens[0] != tokens[1]:
            sizes = " and ".join(map(str, tokens))
            raise InputError(f"heal: student and teacher predict different vocabularies ({sizes} tokens)")
    if not mine.keys() & theirs.keys():
        raise InputError("heal: student and teacher have no output in common")


def _require_memory(student: Module, teacher: Module, rank: int | None) -> None:
    """Training holds the model: refuse before it starts what cannot end well."""
    needed = training_bytes(student.graph, rank) + 4 * numbers(teacher.graph)
    free = _free_bytes()
    if free is not None and needed > free:
        hint = "train adapters (lora=true)" if rank is None else "use a machine with more memory"
        raise InputError(f"heal: training takes about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", hint)


def _free_bytes() -> int | None:
    """Memory that is free or can be freed, where the system says so."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
