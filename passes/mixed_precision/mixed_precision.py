"""The mixed-precision pass: from a size, or a loss of quality, to a scheme for each weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from irlab.analysis import Analysis, LayerStatistics
from irlab.encodings import SchemeName
from irlab.errors import InputError, PlanError, UsageError
from irlab.ir import Module
from irlab.layers import Layer
from irlab.options import Bounds, Bytes
from irlab.passes.mixed_precision.choices import Choice, Losses, choices
from irlab.passes.mixed_precision.knapsack import Options, cheapest, choose
from irlab.passes.mixed_precision.plan import Plan, PlannedWeight
from irlab.passes.mixed_precision.sizes import Sizes, following
from irlab.passes.quantize.gptq import Damping
from irlab.passes.quantize.quantize import Quantize
from irlab.passes.quantize.selection import Candidate, candidates, excluded, note_experts, require_matches
from irlab.passmgr import Context
from irlab.sweep import LayerPass
from irlab.weights import WeightSymbol, static_shape

_TRIES = 12
"""How often a plan is made smaller (or larger) by what its files miss the size by."""


@dataclass(frozen=True)
class MixedPrecision(LayerPass, name="mixed-precision", exactness="lossy"):
    """Quantises a model to a size, or a loss of quality, giving each weight the scheme that serves it best.

        mixed-precision{size=80MB}          the best model whose file is no larger
        mixed-precision{bpw=4.5}            ... whose weights take 4.5 bits on average
        mixed-precision{max-kl=0.02}        the smallest model whose predictions are expected to diverge by 0.02 nats

    What a scheme costs a weight is measured on calibration data: the squared error of what the weight computes, times
    the squared gradient of the loss, which is about the KL divergence that it causes (losses.py; Dong et al. 2019,
    HAWQ, arXiv 1905.03696). Of all combinations that fit, the best is taken (an exact multiple-choice knapsack), tied
    weights counted once; `quantize` then does the work. Without calibration data only the errors of weights count.

    `size`: bytes of what is written, with tokenizer, padding and all; of several targets each file fits. Pass --target
    if nothing is emitted in the same run. `bpw`: bits for each number of the model, as the target stores its weights.
    `max-kl`: the divergence to expect on text like the calibration data.
    `types`: schemes to choose from; none keeps a weight as it is. By default the types of GGML, or where a target lacks
    them the integers that all targets hold; integers are tried in groups of 32 and 128 and with zero points, unless
    `group`, `sym` and `scale` say otherwise.
    `method`: as quantize has it; auto is gptq with calibration data, else rtn. `damping`, `act-order`: of gptq.
    `exclude`: names of weights to leave alone (`*` and `?` match).
    """

    size: Annotated[Bytes, Bounds(1)] | None = None
    bpw: Annotated[float, Bounds(above=0)] | None = None
    max_kl: Annotated[float, Bounds(above=0)] | None = field(default=None, metadata={"text": "max-kl"})
    types: tuple[Literal[SchemeName, "none"], ...] = ()
    method: Literal["auto", "rtn", "hqq", "gptq", "awq", "awq-gptq"] = "auto"
    group: Annotated[int, Bounds(-1)] | None = None
    sym: bool | None = None
    scale: Literal["f16", "bf16", "f32", "i8"] | None = None
    exclude: tuple[str, ...] = ()
    damping: Damping = 0.01
    act_order: bool = field(default=True, metadata={"text": "act-order"})

    def __post_init__(self) -> None:
        super().__post_init__()
        goals = [name for name in ("size", "bpw", "max_kl") if getattr(self, name) is not None]
        if len(goals) != 1:
            raise UsageError(
                f"mixed-precision needs one goal, not {len(goals)}", "give size=700MB, bpw=4.5 or max-kl=0.02"
            )

    @property
    def goal(self) -> str:
        """What was asked for, in words."""
        if self.size is not None:
            return f"size={self.size:,} bytes"
        return f"bpw={self.bpw:g}" if self.bpw is not None else f"max-kl={self.max_kl:g}"

    def needs(self) -> tuple[type[Analysis], ...]:
        return Quantize(method="gptq" if self.method == "auto" else self.method).needs()

    def computes(self, ctx: Context) -> bool:
        return bool(Quantize(method=self._method(ctx)).needs())

    def run(self, module: Module, ctx: Context) -> None:
        if ctx.is_plan or not self.computes(ctx):
            self.prepare(module, ctx)
        else:
            super().run(module, ctx)

    def prepare(self, module: Module, ctx: Context) -> None:
        self.decided(module, ctx).prepare(module, ctx)

    def decided(self, module: Module, ctx: Context) -> LayerPass:
        plan = self.planned(module, ctx)
        ctx.tell(str(plan))
        step = Quantize(self._method(ctx), "none", damping=self.damping, act_order=self.act_order)
        step = step.with_layers(plan.layer_rows())
        ctx.record.plan = plan.as_dict() | {"pipeline": str(step)}
        if plan.predicted_kl is not None:
            ctx.record.metrics["predicted_kl"] = plan.predicted_kl
        if self.size is not None:
            ctx.size_limits |= {str(backend): int(self.size) for backend in ctx.backends()}
        return step

    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        raise AssertionError("what was decided is done by quantize")

    def planned(self, module: Module, ctx: Context) -> Plan:
        """What each weight is to be stored as. Raises InputError where the goal cannot be reached."""
        require_matches(self.exclude, module, self.name)
        note_experts(module, self.name)
        chosen = [c for c in candidates(module.graph) if not excluded(c.symbol.name, self.exclude)]
        if not chosen:
            raise InputError(
                "mixed-precision: no weight of the graph is a matrix of a linear layer", "run fuse before it"
            )
        sizes = Sizes(module, ctx, following(self, ctx.manager.passes))
        options = {"group": self.group, "sym": self.sym, "scale": self.scale}
        able = choices(self.types, options, sizes.backends)
        if ctx.is_plan:
            losses = from_sizes(chosen, able)
        else:
            from irlab.passes.mixed_precision.losses import Measurer

            losses = Measurer(module, ctx, self._method(ctx), self.damping, self.act_order).measure(chosen, able)
        return Problem(module, chosen, able, losses, sizes).solve(self)

    def _method(self, ctx: Context) -> Any:
        return self.method if self.method != "auto" else "rtn" if ctx.calibration is None else "gptq"


def from_sizes(weights: Sequence[Candidate], able: Sequence[Choice]) -> Losses:
    """What choices might cost if no number is known: a quarter of the squared error for each bit more."""
    found = {}
    for candidate in weights:
        shape = static_shape(candidate.symbol.type)
        bits = [0 if c.encoding is None else c.encoding.bits_per_weight(4096) for c in able]
        worth = [int(np.prod(shape)) * 4.0**-b if b else 0.0 for b in bits]
        found[candidate.symbol.name] = np.array([w if c.fits(shape) else np.inf for c, w in zip(able, worth)])
    return Losses("size", found)


class Problem:
    """Which choice for which weight: what each takes and costs, and the best that fits."""

    def __init__(
        self, module: Module, weights: Sequence[Candidate], able: Sequence[Choice], losses: Losses, sizes: Sizes
    ) -> None:
        self._module, self._weights, self._able, self._losses, self._sizes = module, weights, able, losses, sizes
        self._fitting: list[list[int]] = []
        self._classes: list[Options] = []
        for candidate in weights:
            name, kind = candidate.symbol.name, candidate.symbol.type
            fitting = [i for i, loss in enumerate(losses.by_weight[name]) if np.isfinite(loss)]
            if not fitting:
                raise InputError(
                    f"mixed-precision: weight '{name}': rows of {kind.shape[-1]} numbers fit no type",
                    f"add none to types, or exclude={name}",
                )
            kinds = [kind if (e := able[i].encoding) is None else kind.with_element(e) for i in fitting]
            costs = np.array([sizes.of_weight(each) for each in kinds], np.float64)
            self._fitting.append(fitting)
            self._classes.append(Options(costs, losses.by_weight[name][fitting]))

    def solve(self, wanted: MixedPrecision) -> Plan:
        """The plan for the goal of `wanted`. Raises InputError where it cannot be reached."""
        if wanted.size is not None:
            picked, files = self._within_files(int(wanted.size))
        else:
            picked, files = (self._within_bits(wanted.bpw) if wanted.bpw else self._within_loss(wanted.max_kl or 0)), {}
        planned = {}
        for candidate, options, fitting, at in zip(self._weights, self._classes, self._fitting, picked):
            numbers = int(np.prod(static_shape(candidate.symbol.type)))
            cost, loss = int(options.costs[at]), float(options.losses[at])
            planned[candidate.symbol.name] = PlannedWeight(self._able[fitting[at]], numbers, cost, loss)
        return Plan(planned, self._losses.basis, wanted.goal, files)

    def _within_files(self, limit: int) -> tuple[list[int], dict[str, int]]:
        """The best choice of which no file is larger than `limit`. What a file holds besides the weights may depend on
        the choice: it is corrected by how far off a plan was."""
        picked = [int(options.costs.argmin()) for options in self._classes]
        files = self._files(picked)
        least = max(files.values())
        if least > limit:
            raise InputError(
                f"mixed-precision: {limit:,} bytes cannot be reached: the smallest possible is {least:,} bytes",
                "allow more, smaller types=, or prune first",
            )
        best, best_files = picked, files
        capacity = limit - (least - cheapest(self._classes))
        seen = [tuple(picked)]
        for _ in range(_TRIES):
            picked = choose(self._classes, capacity) or best
            files = self._files(picked)
            over = max(files.values()) - limit
            if over <= 0 and self._loss(picked) <= self._loss(best):
                best, best_files = picked, files
            if over <= 0 and tuple(picked) in seen:
                break
            seen.append(tuple(picked))
            # Too large: this choice must not come again. Too small: there is room for a better one.
            capacity = (min(capacity, self._cost(picked)) if over > 0 else capacity) - over
        return best, best_files

    def _within_bits(self, bits: float) -> list[int]:
        """The best choice at this mean of bits over all numbers of the model."""
        names = {candidate.symbol.name for candidate in self._weights}
        weights = self._module.weights
        numbers = sum(
            int(np.prod(static_shape(symbol.type))) for symbol in weights.values() if symbol.type.dtype.is_float
        )
        fixed = sum(self._sizes.of_weight(symbol.type) for name, symbol in weights.items() if name not in names)
        picked = choose(self._classes, bits * numbers / 8 - fixed)
        if picked is None:
            least = 8 * (cheapest(self._classes) + fixed) / numbers
            raise InputError(
                f"mixed-precision: bpw={bits:g} cannot be reached: the smallest possible is {least:.3f}",
                "allow more, or smaller types=",
            )
        return picked

    def _within_loss(self, largest: float) -> list[int]:
        """The smallest choice that loses no more."""
        if self._losses.basis == "size":
            raise PlanError(
                "mixed-precision: what max-kl needs is known once weights are read", "plan with size= or bpw="
            )
        if self._losses.basis != "kl":
            raise InputError(
                "mixed-precision: max-kl needs calibration data and a model that predicts tokens", "give size= or bpw="
            )
        picked = choose([Options(options.losses, options.costs) for options in self._classes], largest)
        if picked is None:
            least = sum(float(options.losses.min()) for options in self._classes)
            raise InputError(
                f"mixed-precision: max-kl={largest:g} cannot be reached: the least with these types is {least:.3g}",
                "add types= of more bits, or none",
            )
        return picked

    def _files(self, picked: Sequence[int]) -> dict[str, int]:
        encodings = {}
        for candidate, fitting, at in zip(self._weights, self._fitting, picked):
            encoding = self._able[fitting[at]].encoding
            if encoding is not None:
                encodings[candidate.symbol.name] = encoding
        return self._sizes.of_files(encodings)

    def _cost(self, picked: Sequence[int]) -> float:
        return sum(float(options.costs[at]) for options, at in zip(self._classes, picked))

    def _loss(self, picked: Sequence[int]) -> float:
        return sum(float(options.losses[at]) for options, at in zip(self._classes, picked))
