"""How far is a changed weight from what it was? Errors of the weight, and of its output on data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from .analysis import ByWeight, Doubles, InputHessian, InputStatistics, LayerStatistics
from .floats import as_f32
from .ir import Module
from .layers import layer_name
from .low_rank import multiply_out
from .passmgr import Context, Instrument, Pass, PassRecord
from .weights import Encode, WeightSymbol

_CHUNK_BYTES: Final = 64 << 20

ERRORS: Final = ("weight_error", "output_error")
"""What is relative; `bits` is the third number."""


def weight_errors(old: WeightSymbol, new: WeightSymbol, statistics: LayerStatistics) -> dict[str, float]:
    """`weight_error` |W - Q| / |W|, `output_error` |(W - Q) x| / |W x| over calibration data where that is known for
    the weight, and `bits` per weight as stored."""
    size = max(1, math.prod(map(int, new.type.shape)))  # type: ignore[arg-type]
    found = {"bits": 8 * new.size_bytes / size}
    if isinstance(old.recipe, Encode):  # still to be encoded when it was replaced
        old = WeightSymbol(old.name, old.recipe.source)
    if old.type.shape != new.type.shape:
        return found
    measure = _Measure(_hessian(new.name, statistics))
    for start, stop in new.recipe.chunks(_CHUNK_BYTES):
        before, after = (as_f32(s.recipe.rows(start, stop)).astype(np.float64) for s in (old, new))
        measure.add(statistics.as_rescaled(new.name, before, start), after)
    return measure.errors() | found


def _hessian(name: str, statistics: LayerStatistics) -> Doubles | None:
    """E[x x^T], or its diagonal, or nothing."""
    if InputHessian in statistics and name in statistics[InputHessian].weights:
        return statistics[InputHessian][name].matrix
    if InputStatistics in statistics and name in statistics[InputStatistics].weights:
        return statistics[InputStatistics][name].mean_square
    return None


class _Measure:
    """Sums of squares over rows of a weight."""

    def __init__(self, hessian: Doubles | None) -> None:
        self.hessian = hessian
        self.weight = self.weight_off = self.output = self.output_off = 0.0

    def add(self, before: Doubles, after: Doubles) -> None:
        off = before - after
        self.weight += float(np.square(before).sum())
        self.weight_off += float(np.square(off).sum())
        self.output += self._energy(before)
        self.output_off += self._energy(off)

    def _energy(self, rows: Doubles) -> float:
        """tr(R H R^T)."""
        if self.hessian is None:
            return 0.0
        if self.hessian.ndim == 1:
            return float((np.square(rows) @ self.hessian).sum())
        return float(np.vdot(rows @ self.hessian, rows))

    def errors(self) -> dict[str, float]:
        errors = {"weight_error": math.sqrt(self.weight_off / self.weight) if self.weight else 0.0}
        if self.hessian is not None and self.output > 0:
            errors["output_error"] = math.sqrt(max(0.0, self.output_off) / self.output)
        return errors


class MeasureWeights(Instrument):
    """Measures what lossy passes cost each weight where they do not say so themselves, but leave the computing to
    the backend. It computes each changed weight once more; with calibration data, inputs too are collected."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._depth = 0
        self._before: Module | None = None
        self._first = 0

    def before_pass(self, step: Pass, module: Module) -> None:
        self._depth += 1
        if self._depth == 1 and step.exactness == "lossy":
            self._before, self._first = module.clone(), len(self._ctx.manager.records) - 1

    def pass_failed(self, step: Pass, module: Module, error: Exception) -> None:
        self._depth -= 1

    def after_pass(self, step: Pass, module: Module, record: PassRecord) -> None:
        self._depth -= 1
        if self._depth or self._before is None:
            return
        old, before, self._before = self._before.weights, self._before, None
        known = {name for each in self._ctx.manager.records[self._first :] for name in each.layers}
        # A matrix that became two factors is what their product is.
        whole = module.clone()
        multiply_out(whole.graph)
        after = whole.weights | module.weights
        new = {name: symbol for name, symbol in after.items() if name in old and name not in known}
        changed = [name for name, symbol in new.items() if symbol.recipe != old[name].recipe and symbol.type.rank > 1]
        hessians: Mapping[str, InputHessian] = {}
        if changed and self._ctx.calibration is not None:
            from .collect import collect

            hessians = collect(InputHessian, before, self._ctx)
        for name in self._ctx.progress.track(changed, "measuring errors of weights", len(changed)):
            taps = {name: hessians[name]} if name in hessians else {}
            facts = ByWeight(InputHessian, taps, {tap: (tap,) for tap in taps})
            record.layers[name] = weight_errors(old[name], new[name], LayerStatistics({InputHessian: facts}))


def layers_table(record: PassRecord) -> str:
    """What a lossy pass cost each layer: bits per weight, and the relative errors of weights and outputs (root mean
    squares over its weights, and the worst weight)."""
    from rich.table import Table

    from .describe import rendered

    table = Table("layer", "bits", "weight error", "output error", "worst weight", title=f"layers after {record.text}")
    groups: dict[str, dict[str, dict[str, float]]] = {}
    for weight, errors in record.layers.items():
        groups.setdefault(layer_name(weight) or weight, {})[weight] = errors
    for layer, weights in groups.items():
        worst = max(weights, key=lambda name: weights[name].get("output_error", weights[name].get("weight_error", 0.0)))
        means = [_root_mean_square([w[key] for w in weights.values() if key in w]) for key in ERRORS]
        bits = sum(w["bits"] for w in weights.values()) / len(weights)
        table.add_row(layer, f"{bits:.2f}", *(f"{m:.4f}" if m is not None else "" for m in means), worst)
    return rendered(table)


def _root_mean_square(numbers: Sequence[float]) -> float | None:
    return (sum(n * n for n in numbers) / len(numbers)) ** 0.5 if numbers else None
