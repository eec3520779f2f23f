"""Which option of each class, so that the sum of losses is least and the costs fit? The multiple-choice knapsack.

Solved exactly: dynamic programming over the Pareto front of partial choices (Nemhauser & Ullmann 1969), class by class,
where a partial choice is dropped once the Lagrangian bound shows that no completion of it beats a choice that is known
(Dyer, Kayal & Walker 1984). Layers repeat, so that few sums of bytes differ and the front stays short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Options:
    """The options of one class, one of which must be taken: f64[options] each."""

    costs: Doubles
    losses: Doubles

    def front(self) -> Indices:
        """The options that no other one beats in both, cheapest first."""
        order = np.lexsort((self.losses, self.costs))
        return order[_improving(self.losses[order])]


def cheapest(classes: Sequence[Options]) -> float:
    """The least sum of costs."""
    return float(sum(options.costs.min() for options in classes))


def choose(classes: Sequence[Options], capacity: float) -> list[int] | None:
    """The option of each class with the least sum of losses among those whose costs sum up to at most `capacity`, or
    None where even the cheapest do not fit."""
    if cheapest(classes) > capacity:
        return None
    fronts = [options.front() for options in classes]
    reduced = [Options(options.costs[f], options.losses[f]) for options, f in zip(classes, fronts)]
    price, known = _relaxed(reduced, capacity)
    # What the classes still ahead cost and lose at least; the latter with a price on cost.
    ahead_cost = _suffix_sums([float(o.costs.min()) for o in reduced])
    ahead_loss = _suffix_sums([float((o.losses + price * o.costs).min()) for o in reduced])
    costs, losses = np.zeros(1), np.zeros(1)
    steps: list[tuple[Indices, Indices]] = []
    slack = 1e-9 * (abs(known) + price * capacity)
    for i, options in enumerate(reduced):
        cost = (costs[:, None] + options.costs).reshape(-1)
        loss = (losses[:, None] + options.losses).reshape(-1)
        bound = loss + price * (cost - capacity) + ahead_loss[i + 1]
        kept = np.flatnonzero((cost + ahead_cost[i + 1] <= capacity) & (bound <= known + slack))
        kept = kept[np.lexsort((loss[kept], cost[kept]))]
        kept = kept[_improving(loss[kept])]
        steps.append((kept // len(options.costs), kept % len(options.costs)))
        costs, losses = cost[kept], loss[kept]
    at = int(losses.argmin())
    chosen = []
    for (before, option), front in zip(reversed(steps), reversed(fronts)):
        chosen.append(int(front[option[at]]))
        at = int(before[at])
    return chosen[::-1]


def _improving(losses: Doubles) -> npt.NDArray[np.bool_]:
    """Where a number is smaller than all before it."""
    least = np.minimum.accumulate(losses)
    return np.concatenate(([True], losses[1:] < least[:-1])) if len(losses) else np.zeros(0, bool)


def _suffix_sums(numbers: Sequence[float]) -> Doubles:
    """The sum from each place on, and 0 behind the last."""
    return np.concatenate((np.cumsum(np.array(numbers[::-1]))[::-1], [0.0]))


def _relaxed(classes: Sequence[Options], capacity: float) -> tuple[float, float]:
    """The price of cost at which choosing freely would just fit, and the loss of a choice that does fit.

    From the cheapest options, upgrades along the convex hull of each class are bought, the most worthwhile first.
    """
    room = capacity - cheapest(classes)
    upgrades = [(i, *step) for i, options in enumerate(classes) for step in _hull_steps(options)]
    upgrades.sort(key=lambda upgrade: -upgrade[1])
    chosen = [0] * len(classes)
    price = 0.0
    for i, worth, cost, option in upgrades:
        if cost > room:
            # Later steps of this class would build on one that was not bought: none is bought any more.
            price = worth
            break
        room -= cost
        chosen[i] = option
    # Summed, not counted down from the first: what is left of a difference may be nothing but rounding.
    return price, float(sum(options.losses[option] for options, option in zip(classes, chosen)))


def _hull_steps(options: Options) -> list[tuple[float, float, int]]:
    """The steps along the lower convex hull of a front: gain per cost, in falling order, cost, and where it leads."""
    hull = [0]
    for i in range(1, len(options.costs)):
        hull.append(i)
        while len(hull) > 2 and _worth(options, hull[-2], hull[-1]) >= _worth(options, hull[-3], hull[-2]):
            del hull[-2]
    costs = options.costs
    return [(_worth(options, a, b), float(costs[b] - costs[a]), b) for a, b in pairwise(hull)]


def _worth(options: Options, a: int, b: int) -> float:
    return float((options.losses[a] - options.losses[b]) / (options.costs[b] - options.costs[a]))
