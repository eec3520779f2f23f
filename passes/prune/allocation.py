"""How much goes from each layer? The same share of all, what bytes ask for, or what costs the loss least."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from irlab.analysis import InputHessian, OutputGradient
from irlab.axes import AxisAnalysis
from irlab.errors import InputError
from irlab.floats import as_f32
from irlab.ir import Module
from irlab.passes.prune.cuts import Cut
from irlab.passes.prune.elimination import Doubles, eliminate
from irlab.passmgr import Context, stored_bytes

LEAST_SHARE = 0.25
"""A global allocation leaves at least this share of every group: costs were measured far from there."""

_BISECTIONS = 30


def ratio_for_bytes(module: Module, axes: AxisAnalysis, found: Sequence[Cut], wanted: int, owner: str) -> float:
    """The share of all groups that has to go for the weights to take `wanted` bytes. Raises InputError where that is
    impossible."""

    def saved(ratio: float) -> int:
        sizes = [(cut, max(1, round(cut.group.size * (1 - ratio)))) for cut in found]
        return sum(
            cut.bytes_with(module, axes, cut.group.size) - cut.bytes_with(module, axes, size) for cut, size in sizes
        )

    need = stored_bytes(module) - wanted
    if need <= 0:
        return 0.0
    low, high = 0.0, 0.99
    if saved(high) < need:
        least = stored_bytes(module) - saved(high)
        raise InputError(f"{owner}: {wanted:,} bytes cannot be reached: at least {least:,} are left")
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if saved(middle) >= need else (middle, high)
    return high


def allocate_globally(
    module: Module,
    axes: AxisAnalysis,
    found: Sequence[Cut],
    ratio: float,
    multiples: Sequence[int],
    damping: float,
    ctx: Context,
) -> dict[str, int]:
    """How many indices of each group are left when `ratio` of all their bytes goes where it costs least.

    The cost of a group that shrinks is the squared error of what its readers compute, each output weighted by the mean
    squared gradient of the loss with respect to it (as in Kurtic et al. 2022, oBERT); for models that predict no tokens
    it is relative to the output's energy.
    """
    heap: list[tuple[float, int, int]] = []
    left = [cut.group.size for cut in found]
    costs = _costs(module, axes, found, damping, ctx)
    per_index = [_bytes_per_index(cut, module, axes) for cut in found]
    goal = ratio * sum(per * cut.group.size for per, cut in zip(per_index, found))

    def offer(i: int) -> None:
        step = multiples[i] if left[i] % multiples[i] == 0 else left[i] % multiples[i]
        after = left[i] - step
        if after >= max(1, LEAST_SHARE * found[i].group.size):
            gone = found[i].group.size - after
            extra = costs[i][gone] - costs[i][gone - step]
            heapq.heappush(heap, (extra / (step * per_index[i]), i, after))

    for i in range(len(found)):
        offer(i)
    while goal > 0 and heap:
        _, i, after = heapq.heappop(heap)
        goal -= (left[i] - after) * per_index[i]
        left[i] = after
        offer(i)
    return {cut.name: size for cut, size in zip(found, left)}


def _bytes_per_index(cut: Cut, module: Module, axes: AxisAnalysis) -> int:
    size = cut.group.size
    return max(1, cut.bytes_with(module, axes, size) - cut.bytes_with(module, axes, size - 1))


def _costs(module: Module, axes: AxisAnalysis, found: Sequence[Cut], damping: float, ctx: Context) -> list[Doubles]:
    """For each cut, the cost of leaving out 0, 1, 2 ... indices of each class: f64[size]."""
    weights = module.weights
    by_reader = {cut.readers()[0].weight: cut for cut in found}
    slopes = ctx.analysis(OutputGradient) if "logits" in module.graph.outputs else None

    def cost(first: str, fact: InputHessian) -> Doubles:
        cut, hessian = by_reader[first], fact.matrix
        rows = []
        for place in cut.readers():
            matrix = as_f32(weights[place.weight].recipe.read()).astype(np.float64)
            if slopes is not None:
                matrix *= np.sqrt(slopes[place.weight].mean_square)[:, None]
            rows.append(matrix)
        weight = np.concatenate(rows)
        if slopes is None:
            weight /= np.sqrt(max(np.vdot(weight @ hessian, weight), np.finfo(np.float64).tiny))
        units = cut.units(axes.of_weight(first)[1])
        gone = eliminate(weight, hessian, units, cut.classes, cut.group.size - 1, damping)
        classes = int(cut.classes.max()) + 1
        return np.concatenate([[0.0], gone.cost.reshape(-1, classes)[:, -1]])

    names = [cut.name for cut in found]
    made = ctx.distilled(InputHessian, cost, by_reader.keys(), "costs", names, damping)
    for cut in found:
        if cut.readers()[0].weight not in made:
            raise InputError(f"nothing is known of what weight '{cut.readers()[0].weight}' reads", "run fuse first")
    return [made[cut.readers()[0].weight] for cut in found]
