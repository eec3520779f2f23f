"""Which scales of a super-block lose least? Groups are d * a * level(code): Q3_K, Q6_K, IQ4_XS."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from .compiling import INLINE, STRIDE, F, Floats, Number, clip, compiled, half, inverse_of, side_by_side, weigh
from .multiples import shape_of


@njit(**INLINE)  # type: ignore[untyped-decorator]
def _level_sums(
    x: Floats,
    w: Floats,
    inverse: Floats,
    size: int,
    lanes: int,
    lowest: Number,
    highest: Number,
    lx: Floats,
    ll: Floats,
) -> None:
    """For each group of x[size, lanes], the sums of w * l * x and w * l^2 for the integers l that it is rounded to."""
    lx[:] = ll[:] = F(0)
    for start in range(0, size, STRIDE):
        for j in range(lanes):
            sum_lx, sum_ll = F(0), F(0)
            for k in range(start, start + STRIDE):
                level = min(max(np.rint(x[k, j] * inverse[j]), lowest), highest)
                wl = w[k, j] * level
                sum_lx += wl * x[k, j]
                sum_ll += wl * level
            lx[j] += sum_lx
            ll[j] += sum_ll


@njit(**INLINE)  # type: ignore[untyped-decorator]
def _table_sums(
    x: Floats,
    w: Floats,
    inverse: Floats,
    size: int,
    lanes: int,
    first: Number,
    middles: Floats,
    rises: Floats,
    lx: Floats,
    ll: Floats,
) -> None:
    """As `_level_sums`, for the levels of a table: from `first` on, each middle that is passed adds its rise."""
    lx[:] = ll[:] = F(0)
    for k in range(size):
        for j in range(lanes):
            level, t = first, x[k, j] * inverse[j]
            for m in range(len(middles)):
                level += rises[m] if t > middles[m] else F(0)
            wl = w[k, j] * level
            lx[j] += wl * x[k, j]
            ll[j] += wl * level


@cache
def signed(
    size: int, subs: int, levels: tuple[float, ...], lowest_scale: int, highest_scale: int, turns: int, reach: int
) -> Callable[..., None]:
    """A search of signed super-blocks: (x f32[n, block], importance f32[m, block], steps f32[:]) fills d f32[n]
    (numbers of f16) and a i8[n, subs]. `steps` are where the extreme of a group may come to lie among the levels. Row i
    of x has the weights of row i % m; m = 0: by themselves."""
    uniform, ends, middles, rises = shape_of(levels)
    least, most = F(lowest_scale), F(highest_scale)

    @compiled
    def search(blocks: Any, importance: Any, steps: Any, d_out: Any, a_out: Any) -> None:
        lanes = a_out.shape[1]  # `subs`, unknown to the compiler: it would unroll loops of 8 instead of making vectors
        flat = np.empty(size * subs, np.float32)
        x, w = np.empty((size, subs), np.float32), np.empty((size, subs), np.float32)
        per_extreme, inverse, lx, ll = np.zeros((4, subs), np.float32)
        scale, near, best, tried, a, best_lx, best_ll = np.zeros((7, subs), np.float32)
        for r in range(len(blocks)):
            weigh(blocks[r], importance, r, size, subs, flat)
            side_by_side(flat, size, subs, w)
            side_by_side(blocks[r], size, subs, x)
            per_extreme[:] = scale[:] = best[:] = F(0)
            for k in range(size):
                for j in range(lanes):
                    per_extreme[j] = x[k, j] if abs(x[k, j]) > abs(per_extreme[j]) else per_extreme[j]
            for j in range(lanes):
                per_extreme[j] = inverse_of(per_extreme[j])
            # Each group by itself.
            for t in range(len(steps) + 2):
                for j in range(lanes):
                    inverse[j] = steps[t] * per_extreme[j] if t < len(steps) else inverse_of(scale[j])
                if uniform:
                    _level_sums(x, w, inverse, size, lanes, ends[0], ends[1], lx, ll)
                else:
                    _table_sums(x, w, inverse, size, lanes, ends[0], middles, rises, lx, ll)
                for j in range(lanes):
                    fit = lx[j] * inverse_of(ll[j])
                    better = fit * lx[j] > best[j]
                    best[j] = fit * lx[j] if better else best[j]
                    scale[j] = fit if better else scale[j]
            top = F(0)
            for j in range(lanes):
                if abs(scale[j]) > abs(top):
                    top = scale[j]
            # All of them under one d.
            d, kept = half(top / least), F(-1)
            for _ in range(turns):
                per_d = inverse_of(d)
                for j in range(lanes):
                    near[j], best[j] = np.rint(scale[j] * per_d), F(-3e38)
                for neighbour in range(-reach, reach + 1):
                    for j in range(lanes):
                        tried[j] = clip(near[j] + F(neighbour), least, most)
                        inverse[j] = inverse_of(d * tried[j])
                    if uniform:
                        _level_sums(x, w, inverse, size, lanes, ends[0], ends[1], lx, ll)
                    else:
                        _table_sums(x, w, inverse, size, lanes, ends[0], middles, rises, lx, ll)
                    for j in range(lanes):
                        s = d * tried[j]
                        gain = F(2) * s * lx[j] - s * s * ll[j]
                        better = gain > best[j]
                        best[j] = gain if better else best[j]
                        a[j] = tried[j] if better else a[j]
                        best_lx[j] = lx[j] if better else best_lx[j]
                        best_ll[j] = ll[j] if better else best_ll[j]
                total, aall, alx = F(0), F(0), F(0)
                for j in range(lanes):
                    total += best[j]
                    aall += a[j] * a[j] * best_ll[j]
                    alx += a[j] * best_lx[j]
                if total <= kept:
                    break
                kept, d_out[r] = total, d
                for j in range(lanes):
                    a_out[r, j] = np.int8(a[j])
                if aall <= F(0):
                    break
                d = half(alx / aall)

    return search  # type: ignore[no-any-return]
