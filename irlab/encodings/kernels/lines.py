"""Which scale and offset of a group lose least? For groups that have an f16 each of their own (Q4_1, Q5_1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from .compiling import INLINE, F, Floats, Number, compiled, weigh


@njit(**INLINE)  # type: ignore[untyped-decorator]
def _line_sums(x: Floats, w: Floats, at: int, size: int, inverse: Number, low: Number, highest: Number) -> Any:
    """Sums of w * q, w * q^2 and w * q * x for the codes q of a group."""
    sq, sqq, sqx = F(0), F(0), F(0)
    for i in range(at, at + size):
        q = min(max(np.rint((x[i] - low) * inverse), F(0)), highest)
        wq = w[i] * q
        sq += wq
        sqq += wq * q
        sqx += wq * x[i]
    return sq, sqq, sqx


@njit(**INLINE)  # type: ignore[untyped-decorator]
def line_fit(sw: Number, swx: Number, sq: Number, sqq: Number, sqx: Number, free: bool) -> Any:
    """The scale s and the offset m (at most 0 unless `free`) that lose least under given codes, and what they gain:
    the error is sum(w * x^2) less that."""
    s, m = F(0), F(0)
    spread = sw * sqq - sq * sq
    if spread > F(0):
        s = (sw * sqx - swx * sq) / spread
        m = (sqq * swx - sq * sqx) / spread
    if spread <= F(0) or (m > F(0) and not free):
        m = F(0)
        s = sqx / sqq if sqq > F(0) else F(0)
    return s, m, F(2) * (s * sqx + m * swx) - (s * s * sqq + F(2) * s * m * sq + m * m * sw)


@njit(**INLINE)  # type: ignore[untyped-decorator]
def _best_line(x: Floats, w: Floats, at: int, size: int, steps: Floats, highest: Number, free: bool) -> Any:
    """The best scale and offset found for a group by itself, and the sums of w and w * x."""
    low, high, sw, swx = x[at], x[at], F(0), F(0)
    for i in range(at, at + size):
        low = min(low, x[i])
        high = max(high, x[i])
        sw += w[i]
        swx += w[i] * x[i]
    if not free:
        low = min(low, F(0))
    scale, offset, best = F(0), low, F(0)
    if high > low:
        for k in range(len(steps) + 2):
            # At the end, rounding under the best line so far.
            if k < len(steps):
                inverse, base = steps[k] / (high - low), low
            elif scale > F(0):
                inverse, base = F(1) / scale, offset
            else:
                break
            sq, sqq, sqx = _line_sums(x, w, at, size, inverse, base, highest)
            s, m, gain = line_fit(sw, swx, sq, sqq, sqx, free)
            if gain > best and s > F(0):
                scale, offset, best = s, m, gain
        if scale == F(0) and sw > F(0):
            offset = swx / sw if free else min(swx / sw, F(0))
    return scale, offset, sw, swx


@cache
def line(size: int, highest_code: int) -> Callable[..., None]:
    """A search of groups with a scale and an offset of their own (Q4_1, Q5_1): (x f32[n, size], importance f32[m,
    size], steps f32[:]) fills scale f32[n] and offset f32[n]."""
    highest = F(highest_code)

    @compiled
    def search(x: Any, importance: Any, steps: Any, scale_out: Any, offset_out: Any) -> None:
        w = np.empty(size, np.float32)
        for r in range(len(x)):
            weigh(x[r], importance, r, size, 1, w)
            scale_out[r], offset_out[r], _, _ = _best_line(x[r], w, 0, size, steps, highest, True)

    return search  # type: ignore[no-any-return]
