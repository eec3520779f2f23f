"""How are units pruned by what data shows? Scores, allocation over layers, and a refit, in a sweep over the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from irlab.analysis import Analysis, InputHessian, LayerStatistics, OutputGradient
from irlab.axes import AxisAnalysis
from irlab.errors import InputError
from irlab.floats import as_f32
from irlab.ir import Module
from irlab.layers import Layer
from irlab.passes.prune.allocation import LEAST_SHARE, allocate_globally
from irlab.passes.prune.base import PruneUnits, magnitudes, naming
from irlab.passes.prune.cuts import Cut
from irlab.passes.prune.elimination import Doubles, Indices, Score, eliminate, least, refit
from irlab.passes.quantize.gptq import Damping
from irlab.passmgr import Context, note
from irlab.types import DType
from irlab.weights import Array, WeightSymbol, numpy_dtype


@dataclass(frozen=True)
class MeasuredUnits(PruneUnits):
    """Base of the passes that choose units by what the matrices that read them read."""

    changes_inputs: ClassVar[bool] = True

    allocate: Literal["uniform", "global"] = "uniform"
    score: Score | None = None
    refit: bool = True
    damping: Damping = 0.01
    _gradients: dict[str, Doubles] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def _score(self) -> Score:
        return self.score or ("obs" if self.refit else "activation")

    def needs(self) -> tuple[type[Analysis], ...]:
        return (InputHessian,) if self.refit or self._score != "magnitude" else ()

    def prepare(self, module: Module, ctx: Context) -> None:
        super().prepare(module, ctx)
        if self._score == "taylor" and not ctx.is_plan:
            gradients = ctx.analysis(OutputGradient)
            names = {place.weight for cut in self._cuts(AxisAnalysis(module.graph)) for place in cut.readers()}
            self._gradients.update({name: gradients[name].mean_square for name in names})

    def _allocate(self, module: Module, axes: AxisAnalysis, found: list[Cut], ctx: Context) -> dict[str, int]:
        if self.allocate == "uniform":
            return super()._allocate(module, axes, found, ctx)
        if ctx.is_plan:
            left = super()._allocate(module, axes, found, ctx)
            note(module, _bounds(self.name, found, left))
            return left
        ratio = self._ratio(module, axes, found)
        return allocate_globally(module, axes, found, ratio, self._multiples(found, ratio, ctx), self.damping, ctx)

    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        axes = AxisAnalysis(layer.whole)
        made: dict[str, WeightSymbol] = {}
        for cut in self._cuts_left(axes):
            removals = cut.group.size - self._left.get(cut.name, cut.group.size)
            if removals > 0 and all(place.weight in layer.weights for place in cut.readers()):
                made |= self._pruned(cut, axes, {**layer.weights, **made}, statistics, removals)
        return made

    def _pruned(
        self,
        cut: Cut,
        axes: AxisAnalysis,
        weights: Mapping[str, WeightSymbol],
        statistics: LayerStatistics,
        removals: int,
    ) -> dict[str, WeightSymbol]:
        """The weights of one cut without `removals` units of each class."""
        readers = cut.readers()
        for place in readers:
            if place.axis != 1 or place.weight not in statistics[InputHessian].weights:
                raise InputError(
                    f"{self.name}: nothing is known of what weight '{place.weight}' reads", "run fuse first"
                )
        first = readers[0]
        hessian = statistics[InputHessian][first.weight].matrix
        units = cut.units(axes.of_weight(first.weight)[1])
        values = {p.weight: as_f32(weights[p.weight].recipe.read()).astype(np.float64) for p in readers}
        stacked = np.concatenate(list(values.values()))
        gone, compensated = naming(
            cut, lambda: self._chosen(cut, axes, weights, stacked, hessian, units, removals, list(values))
        )
        made = {}
        for name in dict.fromkeys(place.weight for place in cut.group.places):
            symbol = WeightSymbol(name, cut.taken(weights[name], axes, gone))
            left = None
            if name in values:
                left = np.flatnonzero(~np.isin(units, gone))
                if self.refit:
                    start = sum(len(values[n]) for n in list(values)[: list(values).index(name)])
                    rows = compensated[start : start + len(values[name]), left]
                    symbol = WeightSymbol(name, _array(rows, symbol))
            statistics.replace(symbol, left)
            made[name] = symbol
        return made

    def _chosen(
        self,
        cut: Cut,
        axes: AxisAnalysis,
        weights: Mapping[str, WeightSymbol],
        weight: Doubles,
        hessian: Doubles,
        units: Indices,
        removals: int,
        names: list[str],
    ) -> tuple[Indices, Doubles]:
        """The units that go, and the readers with those that stay making up for them."""
        if self._score == "obs":
            found = eliminate(weight, hessian, units, cut.classes, removals, self.damping)
            return found.removed, found.weight
        if self._score == "magnitude":
            scores = magnitudes(cut, axes, weights)
        else:
            rows: Doubles = np.ones(len(weight))
            if self._score == "taylor":
                rows = np.concatenate([self._gradients[name] for name in names])
            columns = (np.square(weight) * rows[:, None]).sum(0) * np.diagonal(hessian)
            scores = np.bincount(units[units >= 0], columns[units >= 0], len(cut.classes)).astype(np.float64)
        gone = least(scores, cut.classes, removals)
        if not self.refit:
            return gone, weight
        stays = np.flatnonzero(~np.isin(units, gone))
        full = np.zeros_like(weight)
        full[:, stays] = refit(weight, hessian, stays, self.damping)
        return gone, full


def _bounds(owner: str, found: list[Cut], left: dict[str, int]) -> str:
    """What a plan can say of widths that depend on scores."""
    size = max(cut.group.size for cut in found)
    least = max(1, math.ceil(LEAST_SHARE * size))
    planned = max(left.values())
    return f"{owner}: widths depend on scores: {least} to {size} in each layer; planned with {planned} in all"


def _array(values: Doubles, like: WeightSymbol) -> Array:
    assert isinstance(like.type.element, DType)
    return Array(like.type, np.ascontiguousarray(values).astype(numpy_dtype(like.type.element)))
