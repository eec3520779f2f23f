"""The knapsack behind mixed-precision: optimal, checked against trying everything; and quick where layers repeat."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from irlab.passes.mixed_precision.knapsack import Options, cheapest, choose

NUMBERS = st.one_of(st.integers(0, 12).map(float), st.floats(0, 12))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Options], float]:
    classes = []
    for _ in range(draw(st.integers(1, 5))):
        pairs = draw(st.lists(st.tuples(st.integers(0, 12).map(float), NUMBERS), min_size=1, max_size=4))
        classes.append(Options(*map(np.array, zip(*pairs))))
    return classes, draw(st.integers(0, 40)) + draw(st.sampled_from([0.0, 0.5]))


def best(classes: list[Options], capacity: float) -> float | None:
    sums = [
        (sum(o.costs[i] for o, i in zip(classes, at)), sum(o.losses[i] for o, i in zip(classes, at)))
        for at in product(*(range(len(o.costs)) for o in classes))
    ]
    return min((loss for cost, loss in sums if cost <= capacity), default=None)


@settings(max_examples=300)
@given(problems())
@example(([Options(np.array([0.0, 1.0]), np.array([1.0, 2.2e-313]))], 1.0))
def test_no_other_choice_is_better(problem: tuple[list[Options], float]) -> None:
    classes, capacity = problem
    chosen, wanted = choose(classes, capacity), best(classes, capacity)
    if wanted is None:
        assert chosen is None and cheapest(classes) > capacity
        return
    assert chosen is not None
    assert sum(o.costs[i] for o, i in zip(classes, chosen)) <= capacity
    assert sum(o.losses[i] for o, i in zip(classes, chosen)) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@settings(max_examples=100)
@given(problems())
def test_costs_and_losses_may_change_places(problem: tuple[list[Options], float]) -> None:
    classes = [Options(options.losses, options.costs) for options in problem[0]]
    chosen, wanted = choose(classes, problem[1]), best(classes, problem[1])
    assert (chosen is None) == (wanted is None)
    if chosen is not None:
        assert sum(o.losses[i] for o, i in zip(classes, chosen)) == pytest.approx(wanted)


def test_a_model_of_eighty_layers_is_solved_to_the_last_bytes() -> None:
    rng = np.random.default_rng(0)
    bits = np.array([2.6, 3.4, 4.25, 4.5, 5.0, 5.5, 6.5, 8.5, 16.0])
    shapes = [1 << 20, 1 << 18, 1 << 18, 1 << 20, 3 << 20, 3 << 20, 3 << 20]
    classes = [
        Options(bits * size / 8, rng.lognormal(0, 1.5) * 4.0**-bits * rng.uniform(0.8, 1.2, len(bits)))
        for _ in range(80)
        for size in shapes
    ]
    capacity = sum(options.costs[3] for options in classes)
    chosen = choose(classes, capacity)
    assert chosen is not None
    left = capacity - sum(o.costs[i] for o, i in zip(classes, chosen))
    assert 0 <= left < 1e-4 * capacity
    assert sum(o.losses[i] for o, i in zip(classes, chosen)) < 0.7 * sum(o.losses[3] for o in classes)
