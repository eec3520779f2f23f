"""How fast is what was written, in its runtime, and how fast would it be without the passes that were to save work?

The two files are measured in turns, so that a machine that is busy for a while is so for both.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from .ir import Module
from .passmgr import Context, Pass, PassManager
from .target import Speed, TimedRuntime

if TYPE_CHECKING:
    from .emission import Emitted
    from .target import Backend

PROMPT_TOKENS: Final = 128
NEW_TOKENS: Final = 64
"""How long the prompt and its continuation are, where the context of the model allows it."""

ROUNDS: Final = 5
LEAST_GAIN: Final = 1.02
"""A smaller ratio of speeds is no gain: two measurements of one file differ by as much."""


@dataclass(frozen=True)
class Measured:
    """The speed of a file in each round, and that of one made without the passes `without`, if there are any.

    `skipped` is the reason if nothing was measured.
    """

    runtime: str = ""
    rounds: tuple[Speed, ...] = ()
    rounds_before: tuple[Speed, ...] = ()
    without: tuple[str, ...] = ()
    skipped: str = ""
    busy: str = ""
    """Where the machine had more to do than it has processors: how much, in words."""

    @property
    def speed(self) -> Speed | None:
        """The medians."""
        return _medians(self.rounds)

    @property
    def before(self) -> Speed | None:
        """The medians without the passes."""
        return _medians(self.rounds_before)

    @property
    def ratios(self) -> list[Speed]:
        """How many times as fast the file is as without the passes, round by round."""
        pairs = zip(self.rounds, self.rounds_before)
        return [Speed(after.prompt / before.prompt, after.decode / before.decode) for after, before in pairs]

    @property
    def gain(self) -> Speed | None:
        """The medians of the ratios."""
        return _medians(self.ratios)

    @property
    def warning(self) -> str:
        """What to warn of; empty where something was gained, in all rounds but one at least."""
        ratios, gain = self.ratios, self.gain
        if gain is None:
            return ""
        for what in Speed._fields:
            faster = sum(getattr(ratio, what) > 1 for ratio in ratios)
            if getattr(gain, what) >= LEAST_GAIN and faster >= len(ratios) - 1:
                return ""
        return f"no gain shows in {self.runtime}: it is as fast without {', '.join(self.without)}"

    def as_dict(self) -> dict[str, Any]:
        """For `--report`; what was not measured is None."""

        def numbers(speed: Speed | None) -> dict[str, float] | None:
            return None if speed is None else speed._asdict()

        return {
            "runtime": self.runtime,
            "tokens_per_second": numbers(self.speed),
            "tokens_per_second_before": numbers(self.before),
            "gain": numbers(self.gain),
            "without": list(self.without),
            "warning": self.warning,
            "busy": self.busy,
            "skipped": self.skipped,
        }

    def __str__(self) -> str:
        if self.speed is None:
            return f"speed not measured: {self.skipped}"
        text = f"in {self.runtime}: {self.speed.decode:,.1f} tokens/s, prompts {self.speed.prompt:,.1f} tokens/s"
        if self.before is not None and self.gain is not None:
            text += (
                f"; without {', '.join(self.without)} {self.before.decode:,.1f} and {self.before.prompt:,.1f}: "
                f"{self.gain.decode:.2f} and {self.gain.prompt:.2f} times as fast"
            )
        return text + (f" ({self.busy})" if self.busy else "")


@dataclass
class SpeedGain:
    """Measures outputs of a pipeline beside what it would have written without the passes that save work.

    original: a copy of the module that the pipeline started from. passes: the pipeline, configured anew. The files
    for comparison have weights of the same types at the same places, so they are as fast as if they had been made with
    calibration data; but nothing is learned for them, and they are removed.
    """

    original: Module
    passes: Sequence[Pass]
    ctx: Context
    _baseline: Module | None = field(default=None, init=False)

    def measure(self, backend: Backend, emitted: Emitted) -> Measured:
        """The speed of what `backend` wrote."""
        from .emission import emit_with

        runtime, out = emitted.runtime, emitted.out
        if not isinstance(runtime, TimedRuntime):
            return Measured(skipped=f"{backend.name} has no runtime to measure it in")
        if reason := runtime.unavailable():
            return Measured(skipped=reason)
        sizes = run_sizes(self.original)
        without = left_out(self.passes)
        if not without:
            (rounds,) = speeds([(runtime, out)], *sizes)
            return Measured(runtime.name, rounds, busy=_busy())
        with tempfile.TemporaryDirectory(prefix=".irlab-", dir=out.parent) as folder:
            ctx, place = self._plan_context(), Path(folder, out.name)
            other = emit_with(backend, self.baseline(), place, parity=False, force=False, ctx=ctx)
            assert isinstance(other.runtime, TimedRuntime)
            rounds, before = speeds([(runtime, out), (other.runtime, place)], *sizes)
        return Measured(runtime.name, rounds, before, tuple(str(step) for step in without), busy=_busy())

    def baseline(self) -> Module:
        """What the pipeline makes of the original without the passes that save work."""
        if self._baseline is None:
            self._baseline = self.original.clone()
            without = left_out(self.passes)
            manager = PassManager([p for p in self.passes if p not in without], self._plan_context())
            # What repairs learn from is there, also where what made them needed is left out.
            manager.original = self.original
            manager.run(self._baseline)
        return self._baseline

    def _plan_context(self) -> Context:
        """As of a plan, in which passes give weights their types and learn nothing."""
        return replace(self.ctx, is_plan=True)


def left_out(passes: Sequence[Pass]) -> list[Pass]:
    """The passes whose gain is measured: those that save work, or else all lossy ones."""
    return [p for p in passes if p.saves_work] or [p for p in passes if p.exactness == "lossy"]


def run_sizes(module: Module) -> tuple[int, int]:
    """The tokens of the prompt and of its continuation, which fit into the context that the model is made for."""
    stated = module.metadata.get("config", {}).get("max_position_embeddings")
    if not isinstance(stated, int) or stated >= PROMPT_TOKENS + NEW_TOKENS:
        return PROMPT_TOKENS, NEW_TOKENS
    new = max(1, stated // 3)
    return max(1, stated - new), new


def speeds(
    outs: Sequence[tuple[TimedRuntime, Path]], prompt: int, new: int, rounds: int = ROUNDS, *, processor: bool = False
) -> list[tuple[Speed, ...]]:
    """The speed of each of `outs` in its runtime, round by round; in each round all of them have a turn.

    `processor`: as of `TimedRuntime.speed`."""
    found: list[list[Speed]] = [[] for _ in outs]
    for _ in range(rounds):
        for (runtime, out), measured in zip(outs, found):
            measured.append(runtime.speed(out, prompt, new, processor=processor))
    return [tuple(measured) for measured in found]


def _busy() -> str:
    """What to think of measurements where others were running: empty on a quiet machine."""
    if not hasattr(os, "getloadavg"):  # Windows
        return ""
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    return f"on a busy machine: a load of {load:.0f} on {processors} processors" if load > processors + 1 else ""


def _medians(rounds: Sequence[Speed]) -> Speed | None:
    return Speed(*(median(values) for values in zip(*rounds))) if rounds else None
