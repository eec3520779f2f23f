"""What do passes that prune units have in common? How much goes from each layer, and the graph that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, TypeVar

import numpy as np

from irlab.analysis import Analysis, LayerStatistics
from irlab.axes import AxisAnalysis, describe_groups, resize
from irlab.errors import InputError, UsageError
from irlab.floats import as_f32
from irlab.ir import Graph, Module
from irlab.layers import Layer
from irlab.options import Bounds, Bytes
from irlab.passes.prune.allocation import ratio_for_bytes
from irlab.passes.prune.cuts import Cut, cuts, left_of, require_plain, resized_groups, width_multiple
from irlab.passes.prune.elimination import Doubles, least
from irlab.passmgr import Context, stored_bytes
from irlab.sweep import LayerPass
from irlab.weights import WeightSymbol

T = TypeVar("T")


@dataclass(frozen=True)
class PruneUnits(LayerPass):
    """Base of the passes that prune units: `role` names the groups whose indices are units. By itself it goes by
    magnitude; `MeasuredUnits` learns from data."""

    ratio: Annotated[float, Bounds(0, below=1, idle=0)] | None = None
    size: Annotated[Bytes, Bounds(1)] | None = None
    speedup: Annotated[float, Bounds(above=1)] | None = None
    multiple: Annotated[int, Bounds(1)] | None = None
    _left: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    saves_work = True
    role: ClassVar[str]
    within: ClassVar[str] = ""
    prefers_blocks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [n for n in ("ratio", "size", "speedup") if getattr(self, n) is not None]
        if len(given) > 1:
            raise UsageError(f"{self.name}: {given[0]} and {given[1]} both say how much to prune", "give one")
        if not given:
            raise UsageError(f"{self.name} does not say how much to prune", "give ratio=, size= or speedup=")

    def needs(self) -> tuple[type[Analysis], ...]:
        return ()

    def depends_on(self, ctx: Context) -> tuple[object, ...]:
        return (ctx.targets,) if self.prefers_blocks and self.multiple is None else ()

    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        return {}

    def explain(self, module: Module) -> str:
        return describe_groups(AxisAnalysis(module.graph), [self.role])

    # How much

    def prepare(self, module: Module, ctx: Context) -> None:
        axes = AxisAnalysis(module.graph)
        found = self._cuts(axes)
        for cut in found:
            require_plain(cut, module.weights, self.name)
        self._left.clear()
        self._left.update(self._allocate(module, axes, found, ctx))
        if ctx.is_plan or not self.needs():
            self._prune_by_magnitude(module, axes, found, ctx)

    def _allocate(self, module: Module, axes: AxisAnalysis, found: list[Cut], ctx: Context) -> dict[str, int]:
        """How many indices of each group are left."""
        ratio = self._ratio(module, axes, found)
        ratios = {cut.name: self._ratio_of(cut, ratio) for cut in found}
        multiples = {c.name: n for c, n in zip(found, self._multiples(found, ratio, ctx))}
        return {c.name: left_of(c.group.size, ratios[c.name], multiples[c.name], self._what(c)) for c in found}

    def _what(self, cut: Cut) -> str:
        return f"{self.name}: {cut.name}"

    def _ratio_of(self, cut: Cut, ratio: float) -> float:
        """The ratio of one group, which may be an option of its layer."""
        own = self.at(cut.group.places[0].weight)
        return ratio if own.ratio is None or self.ratio is None else own.ratio

    def _ratio(self, module: Module, axes: AxisAnalysis, found: list[Cut]) -> float:
        if self.ratio is not None:
            return self.ratio
        now = stored_bytes(module)
        wanted = int(self.size) if self.size is not None else int(now / (self.speedup or 1))
        return ratio_for_bytes(module, axes, found, wanted, self.name)

    def _multiples(self, found: list[Cut], ratio: float, ctx: Context) -> list[int]:
        if not self.prefers_blocks:
            return [self.multiple or 1 for _ in found]
        return [
            width_multiple(c.group.size, round(c.group.size * (1 - ratio)), self.multiple, ctx.targets) for c in found
        ]

    # Doing it

    def _cuts(self, axes: AxisAnalysis) -> list[Cut]:
        return cuts(axes, self.role, self.name, within=self.within)

    def _prune_by_magnitude(self, module: Module, axes: AxisAnalysis, found: list[Cut], ctx: Context) -> None:
        """Without statistics: what is smallest goes, or for a plan just the last ones."""
        weights, symbols, count = module.weights, dict[str, WeightSymbol](), 0
        for cut in found:
            removals = cut.group.size - self._left[cut.name]
            if removals:
                units = len(cut.classes)
                scores = -np.arange(units, dtype=float) if ctx.is_plan else magnitudes(cut, axes, weights)
                gone = naming(cut, partial(least, scores, cut.classes, removals))
                for name in dict.fromkeys(place.weight for place in cut.group.places):
                    current = symbols.get(name, weights[name])
                    symbols[name] = WeightSymbol(name, cut.taken(current, axes, gone))
                count += len(gone)
        self.install(module.graph, symbols)
        ctx.note_rewrites({"prune": count})

    def install(self, graph: Graph, symbols: Mapping[str, WeightSymbol]) -> None:
        axes = AxisAnalysis(graph)
        sizes, own = {}, set()
        for cut, size in resized_groups(axes, self._cuts_left(axes), symbols):
            sizes[cut.group.leaf] = size
            own |= {place.weight for place in cut.group.places}
        if sizes:
            resize(graph, axes, sizes, {name: symbols[name] for name in own if name in symbols})

    def _cuts_left(self, axes: AxisAnalysis) -> list[Cut]:
        """The cuts of a graph in which nothing may be left to prune."""
        try:
            return self._cuts(axes)
        except InputError:
            return []


def magnitudes(cut: Cut, axes: AxisAnalysis, weights: Mapping[str, WeightSymbol]) -> Doubles:
    """The sum of squares of all numbers that belong to each unit, over the mean of its weight."""
    scores = np.zeros(len(cut.classes))
    for place in dict.fromkeys((place.weight, place.axis) for place in cut.group.places):
        name, axis = place
        units = cut.units(axes.of_weight(name)[axis])
        values = np.square(as_f32(weights[name].recipe.read()).astype(np.float64))
        by_index = np.moveaxis(values, axis, 0).reshape(len(units), -1).sum(1)
        mean = by_index.mean() or 1.0
        scores += np.bincount(units[units >= 0], by_index[units >= 0] / mean, len(scores))
    return scores


def naming(cut: Cut, work: Callable[[], T]) -> T:
    """What `work` gives; its errors name the cut."""
    try:
        return work()
    except InputError as error:
        error.message = f"{cut.name}: {error.message}"
        raise
