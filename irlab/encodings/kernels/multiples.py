"""Which scale of a group loses least, for levels that are integers or numbers of a table? One scale for each group."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from .compiling import INLINE, F, Floats, Number, compiled, inverse_of, weigh


@njit(**INLINE)  # type: ignore[untyped-decorator]
def level_sums(x: Floats, w: Floats, at: int, size: int, inverse: Number, lowest: Number, highest: Number) -> Any:
    """Sums of w * l * x and w * l^2 for the integers l that a group is rounded to."""
    slx, sll = F(0), F(0)
    for i in range(at, at + size):
        level = min(max(np.rint(x[i] * inverse), lowest), highest)
        wl = w[i] * level
        slx += wl * x[i]
        sll += wl * level
    return slx, sll


@njit(**INLINE)  # type: ignore[untyped-decorator]
def table_sums(
    x: Floats, w: Floats, at: int, size: int, inverse: Number, first: Number, middles: Floats, rises: Floats
) -> Any:
    """As `level_sums`, for the levels of a table: from `first` on, each middle that is passed adds its rise."""
    slx, sll = F(0), F(0)
    for i in range(at, at + size):
        level, t = first, x[i] * inverse
        for k in range(len(middles)):
            level += rises[k] if t > middles[k] else F(0)
        wl = w[i] * level
        slx += wl * x[i]
        sll += wl * level
    return slx, sll


@njit(**INLINE)  # type: ignore[untyped-decorator]
def _best_multiple(
    x: Floats, w: Floats, at: int, size: int, steps: Floats, uniform: bool, ends: Any, middles: Floats, rises: Floats
) -> Number:
    """The best scale found for a group by itself. `steps` are where the extreme may come to lie among the levels."""
    extreme = F(0)
    for i in range(at, at + size):
        if abs(x[i]) > abs(extreme):
            extreme = x[i]
    scale, best = F(0), F(0)
    if extreme != F(0):
        for k in range(len(steps) + 2):
            inverse = steps[k] / extreme if k < len(steps) else inverse_of(scale)
            if uniform:
                slx, sll = level_sums(x, w, at, size, inverse, ends[0], ends[1])
            else:
                slx, sll = table_sums(x, w, at, size, inverse, ends[0], middles, rises)
            if sll > F(0) and slx * slx > best * sll:
                scale, best = slx / sll, slx * slx / sll
    return scale


def shape_of(levels: tuple[float, ...]) -> tuple[bool, tuple[Number, Number], Floats, Floats]:
    """Whether `levels`, ascending, are successive integers; their ends; where one gives way to the next, how far up."""
    table = np.array(levels, np.float32)
    rises = np.diff(table)
    return bool((rises == 1).all()), (table[0], table[-1]), ((table[1:] + table[:-1]) / 2).astype(np.float32), rises


@cache
def multiple(size: int, levels: tuple[float, ...]) -> Callable[..., None]:
    """A search of groups with a scale of their own for a table of levels: (x f32[n, size], importance f32[m, size],
    steps f32[:]) fills scale f32[n]."""
    uniform, ends, middles, rises = shape_of(levels)

    @compiled
    def search(x: Any, importance: Any, steps: Any, scale_out: Any) -> None:
        w = np.empty(size, np.float32)
        for r in range(len(x)):
            weigh(x[r], importance, r, size, 1, w)
            scale_out[r] = _best_multiple(x[r], w, 0, size, steps, uniform, ends, middles, rises)

    return search  # type: ignore[no-any-return]


@cache
def nearest_scale(size: int, levels: tuple[float, ...]) -> Callable[..., None]:
    """The best of given scales: (x f32[n, size], importance f32[m, size], scales f32[n, k]) fills best i64[n]."""
    uniform, ends, middles, rises = shape_of(levels)

    @compiled
    def search(x: Any, importance: Any, scales: Any, best_out: Any) -> None:
        w = np.empty(size, np.float32)
        for r in range(len(x)):
            weigh(x[r], importance, r, size, 1, w)
            least, best_out[r] = F(3e38), 0
            for k in range(scales.shape[1]):
                s = scales[r, k]
                if uniform:
                    slx, sll = level_sums(x[r], w, 0, size, inverse_of(s), ends[0], ends[1])
                else:
                    slx, sll = table_sums(x[r], w, 0, size, inverse_of(s), ends[0], middles, rises)
                loss = s * s * sll - F(2) * s * slx
                if loss < least:
                    least, best_out[r] = loss, k

    return search  # type: ignore[no-any-return]
