"""Which scales lose least, where NumPy would be slow? Searches that numba compiles.

    code_sums         what the codes of integers under given scales lose (search.py)
    line, multiple    groups with a scale (and an offset) of their own
    nearest_scale     the best of some given scales
    k_means           tables of rows
    affine, signed    super-blocks: scales of groups are small integers under scales of the block

A super-block is `subs` groups of `size` numbers. Affine ones (Q2_K, Q4_K, Q5_K) hold d * a * q - dmin * b, with a and b
integers of a group and q a code; signed ones (Q3_K, Q6_K, IQ4_XS) hold d * a * level(q). The search has two parts:

* each group by itself: codes under a few scales, the least-squares scale (and offset) of each set of codes, the best of
  them, refined by rounding and fitting in turn;
* the super-block: with d (and dmin) from the largest group, each group takes the integers that lose least, out of the
  `reach` neighbours of its own best; then d and dmin are fitted, by least squares, to all codes and integers at once.
  There are up to `turns` of this, while the error falls.

llama.cpp's `make_qkx3_quants` does the first part with 21 to 37 scales, each measured in a second pass, and derives the
super-block's scale from the groups' alone. Here the error follows from the sums of the fit, loops have constant bounds
so that they become vector code, and the second part brings more than further scales would.

Weights of the squared errors: the importance of the column or, without, sqrt(mean(x^2) + x^2) of the group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

AnyArray = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

# Sums may be reordered, which is what makes them vector code; nothing here is NaN or infinite.
_FAST: Final[dict[str, Any]] = {"nogil": True, "fastmath": True, "error_model": "numpy"}
_INLINE: Final[dict[str, Any]] = {**_FAST, "inline": "always"}
F: Final = np.float32
Number: TypeAlias = Any
"""An f32 in compiled code."""


def _compiled(function: Callable[..., None]) -> Any:
    """`function` as compiled code, kept on disk for the next process where there is a place for it."""
    try:
        return njit(cache=True, **_FAST)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return njit(**_FAST)(function)


@njit(nogil=True, fastmath={"reassoc", "nsz"}, error_model="numpy")  # type: ignore[untyped-decorator]
def code_sums(
    y: Floats,
    weights: Floats,
    inverse: Floats,
    lowest: Floats,
    highest: Floats,
    by: Floats,
    step: Floats,
    error: Floats,
    excess: Floats,
    energy: Floats,
) -> None:
    """For groups y[n, size] with codes q = clip(rint(y inverse)): the weighted sums over each group of rest^2, rest q
    and q^2 (1 where all codes are zero), where rest = y by - q step; vectors [n]. Multiply and add stay two roundings:
    what is on a grid must be found to lose exactly nothing."""
    for i in range(len(y)):
        squares, products, codes = F(0), F(0), F(0)
        for k in range(y.shape[1]):
            q = np.rint(y[i, k] * inverse[i])
            q = lowest[i] if q < lowest[i] else q
            q = highest[i] if q > highest[i] else q
            rest = y[i, k] * by[i] - q * step[i]
            weighted = weights[i, k] * rest
            squares += weighted * rest
            products += weighted * q
            codes += weights[i, k] * q * q
        error[i], excess[i], energy[i] = squares, products, codes if codes != 0 else F(1)


@njit(**_INLINE)  # type: ignore[untyped-decorator]
def _half(x: Number) -> Number:
    """x rounded to a number that f16 has (below 2^-14, to a multiple of 2^-24)."""
    bits = np.float32(x).view(np.uint32)
    even = (bits >> 13) & 1
    rounded = np.uint32((bits + 0xFFF + even) & 0xFFFFE000).view(np.float32)
    return rounded if abs(x) >= F(6.103515625e-05) else np.rint(x * F(16777216)) * F(5.9604644775390625e-08)


@njit(**_INLINE)  # type: ignore[untyped-decorator]
def _weigh(x: Floats, importance: Floats, row: int, size: int, subs: int, w: Floats) -> None:
    """Let w be the weights of super-block x, number `row`."""
    if len(importance):
        at = row % len(importance)
        for i in range(size * subs):
            w[i] = importance[at, i]
        return
    for j in range(subs):
        mean = F(0)
        for i in range(j * size, j * size + size):
            mean += x[i] * x[i]
        mean /= F(size)
        for i in range(j * size, j * size + size):
            w[i] = np.sqrt(mean + x[i] * x[i])


@njit(**_INLINE)  # type: ignore[untyped-decorator]
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


@njit(**_INLINE)  # type: ignore[untyped-decorator]
def _line_fit(sw: Number, swx: Number, sq: Number, sqq: Number, sqx: Number, free: bool) -> Any:
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


@njit(**_INLINE)  # type: ignore[untyped-decorator]
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
            s, m, gain = _line_fit(sw, swx, sq, sqq, sqx, free)
            if gain > best and s > F(0):
                scale, offset, best = s, m, gain
        if scale == F(0) and sw > F(0):
            offset = swx / sw if free else min(swx / sw, F(0))
    return scale, offset, sw, swx


@njit(**_INLINE)  # type: ignore[untyped-decorator]
def _clip(value: Number, low: Number, high: Number) -> Number:
    return min(max(np.rint(value), low), high)


@njit(**_INLINE)  # type: ignore[untyped-decorator]
def _inverse(value: Number) -> Number:
    return F(1) / value if value != F(0) else F(0)


@cache
def affine(size: int, subs: int, highest_code: int, highest_scale: int, turns: int, reach: int) -> Callable[..., None]:
    """A search of affine super-blocks: (x f32[n, block], importance f32[m, block], steps f32[:]) fills d f32[n],
    dmin f32[n] (numbers of f16), a and b u8[n, subs]. Row i of x has the weights of row i % m; m = 0: by themselves."""
    highest, most = F(highest_code), F(highest_scale)

    @_compiled
    def search(x: Any, importance: Any, steps: Any, d_out: Any, dmin_out: Any, a_out: Any, b_out: Any) -> None:
        w = np.empty(size * subs, np.float32)
        scale, offset, sw, swx, a, b = np.zeros((6, subs), np.float32)
        for r in range(len(x)):
            xs = x[r]
            _weigh(xs, importance, r, size, subs, w)
            top_scale, top_offset = F(0), F(0)
            for j in range(subs):
                scale[j], offset[j], sw[j], swx[j] = _best_line(xs, w, j * size, size, steps, highest, False)
                top_scale = max(top_scale, scale[j])
                top_offset = max(top_offset, -offset[j])
            d, dmin, kept = _half(top_scale / most), _half(top_offset / most), F(-1)
            for _turn in range(turns):
                total, aaqq, abq, bb, aqx, bx = F(0), F(0), F(0), F(0), F(0), F(0)
                for j in range(subs):
                    best, best_q, best_qq, best_qx = F(-3e38), F(0), F(0), F(0)
                    near = np.rint(scale[j] * _inverse(d))
                    for neighbour in range(-reach, reach + 1):
                        aj = _clip(near + F(neighbour), F(0), most)
                        bj = _clip(-offset[j] * _inverse(dmin), F(0), most)
                        s = d * aj
                        for _ in range(2):
                            m = dmin * bj
                            sq, sqq, sqx = _line_sums(xs, w, j * size, size, _inverse(s), -m, highest)
                            gain = F(2) * (s * sqx - m * swx[j]) - (s * s * sqq - F(2) * s * m * sq + m * m * sw[j])
                            if gain > best:
                                best, best_q, best_qq, best_qx = gain, sq, sqq, sqx
                                a[j], b[j] = aj, bj
                            # The offset that these codes want.
                            before = bj
                            if sw[j] > F(0):
                                bj = _clip((s * sq - swx[j]) / sw[j] * _inverse(dmin), F(0), most)
                            if bj == before:
                                break
                    total += best
                    aaqq += a[j] * a[j] * best_qq
                    abq += a[j] * b[j] * best_q
                    bb += b[j] * b[j] * sw[j]
                    aqx += a[j] * best_qx
                    bx += b[j] * swx[j]
                if total <= kept:
                    break
                kept, d_out[r], dmin_out[r] = total, d, dmin
                for j in range(subs):
                    a_out[r, j], b_out[r, j] = np.uint8(a[j]), np.uint8(b[j])
                spread = aaqq * bb - abq * abq
                if bb > F(0) and spread > F(1e-6) * aaqq * bb:
                    new_d, new_dmin = (aqx * bb - bx * abq) / spread, (aqx * abq - bx * aaqq) / spread
                else:
                    new_d, new_dmin = F(0), F(-1)
                if new_dmin < F(0):
                    new_d, new_dmin = (aqx / aaqq if aaqq > F(0) else F(0)), F(0)
                if new_d <= F(0):
                    break
                d, dmin = _half(new_d), _half(new_dmin)

    return search  # type: ignore[no-any-return]


@cache
def line(size: int, highest_code: int) -> Callable[..., None]:
    """A search of groups with a scale and an offset of their own (Q4_1, Q5_1): (x f32[n, size], importance f32[m,
    size], steps f32[:]) fills scale f32[n] and offset f32[n]."""
    highest = F(highest_code)

    @_compiled
    def search(x: Any, importance: Any, steps: Any, scale_out: Any, offset_out: Any) -> None:
        w = np.empty(size, np.float32)
        for r in range(len(x)):
            _weigh(x[r], importance, r, size, 1, w)
            scale_out[r], offset_out[r], _, _ = _best_line(x[r], w, 0, size, steps, highest, True)

    return search  # type: ignore[no-any-return]


@njit(**_INLINE)  # type: ignore[untyped-decorator]
def _level_sums(x: Floats, w: Floats, at: int, size: int, inverse: Number, lowest: Number, highest: Number) -> Any:
    """Sums of w * l * x and w * l^2 for the integers l that a group is rounded to."""
    slx, sll = F(0), F(0)
    for i in range(at, at + size):
        level = min(max(np.rint(x[i] * inverse), lowest), highest)
        wl = w[i] * level
        slx += wl * x[i]
        sll += wl * level
    return slx, sll


@njit(**_INLINE)  # type: ignore[untyped-decorator]
def _table_sums(
    x: Floats, w: Floats, at: int, size: int, inverse: Number, first: Number, middles: Floats, rises: Floats
) -> Any:
    """As `_level_sums`, for the levels of a table: from `first` on, each middle that is passed adds its rise."""
    slx, sll = F(0), F(0)
    for i in range(at, at + size):
        level, t = first, x[i] * inverse
        for k in range(len(middles)):
            level += rises[k] if t > middles[k] else F(0)
        wl = w[i] * level
        slx += wl * x[i]
        sll += wl * level
    return slx, sll


@njit(**_INLINE)  # type: ignore[untyped-decorator]
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
            inverse = steps[k] / extreme if k < len(steps) else _inverse(scale)
            if uniform:
                slx, sll = _level_sums(x, w, at, size, inverse, ends[0], ends[1])
            else:
                slx, sll = _table_sums(x, w, at, size, inverse, ends[0], middles, rises)
            if sll > F(0) and slx * slx > best * sll:
                scale, best = slx / sll, slx * slx / sll
    return scale


def _shape_of(levels: tuple[float, ...]) -> tuple[bool, tuple[Number, Number], Floats, Floats]:
    """Whether `levels`, ascending, are successive integers; their ends; where one gives way to the next, how far up."""
    table = np.array(levels, np.float32)
    rises = np.diff(table)
    return bool((rises == 1).all()), (table[0], table[-1]), ((table[1:] + table[:-1]) / 2).astype(np.float32), rises


@cache
def multiple(size: int, levels: tuple[float, ...]) -> Callable[..., None]:
    """A search of groups with a scale of their own for a table of levels: (x f32[n, size], importance f32[m, size],
    steps f32[:]) fills scale f32[n]."""
    uniform, ends, middles, rises = _shape_of(levels)

    @_compiled
    def search(x: Any, importance: Any, steps: Any, scale_out: Any) -> None:
        w = np.empty(size, np.float32)
        for r in range(len(x)):
            _weigh(x[r], importance, r, size, 1, w)
            scale_out[r] = _best_multiple(x[r], w, 0, size, steps, uniform, ends, middles, rises)

    return search  # type: ignore[no-any-return]


@cache
def signed(
    size: int, subs: int, levels: tuple[float, ...], lowest_scale: int, highest_scale: int, turns: int, reach: int
) -> Callable[..., None]:
    """A search of signed super-blocks: (x f32[n, block], importance f32[m, block], steps f32[:]) fills d f32[n]
    (numbers of f16) and a i8[n, subs]."""
    uniform, ends, middles, rises = _shape_of(levels)
    least, most = F(lowest_scale), F(highest_scale)

    @_compiled
    def search(x: Any, importance: Any, steps: Any, d_out: Any, a_out: Any) -> None:
        w = np.empty(size * subs, np.float32)
        scale, a = np.zeros((2, subs), np.float32)
        for r in range(len(x)):
            xs = x[r]
            _weigh(xs, importance, r, size, subs, w)
            top = F(0)
            for j in range(subs):
                scale[j] = _best_multiple(xs, w, j * size, size, steps, uniform, ends, middles, rises)
                if abs(scale[j]) > abs(top):
                    top = scale[j]
            d, kept = _half(top / least), F(-1)
            for _ in range(turns):
                total, aall, alx = F(0), F(0), F(0)
                for j in range(subs):
                    best, best_lx, best_ll = F(-3e38), F(0), F(0)
                    near = np.rint(scale[j] * _inverse(d))
                    for neighbour in range(-reach, reach + 1):
                        aj = _clip(near + F(neighbour), least, most)
                        s = d * aj
                        if uniform:
                            slx, sll = _level_sums(xs, w, j * size, size, _inverse(s), ends[0], ends[1])
                        else:
                            slx, sll = _table_sums(xs, w, j * size, size, _inverse(s), ends[0], middles, rises)
                        gain = F(2) * s * slx - s * s * sll
                        if gain > best:
                            best, best_lx, best_ll, a[j] = gain, slx, sll, aj
                    total += best
                    aall += a[j] * a[j] * best_ll
                    alx += a[j] * best_lx
                if total <= kept:
                    break
                kept, d_out[r] = total, d
                for j in range(subs):
                    a_out[r, j] = np.int8(a[j])
                if aall <= F(0):
                    break
                d = _half(alx / aall)

    return search  # type: ignore[no-any-return]


@cache
def nearest_scale(size: int, levels: tuple[float, ...]) -> Callable[..., None]:
    """The best of given scales: (x f32[n, size], importance f32[m, size], scales f32[n, k]) fills best i64[n]."""
    uniform, ends, middles, rises = _shape_of(levels)

    @_compiled
    def search(x: Any, importance: Any, scales: Any, best_out: Any) -> None:
        w = np.empty(size, np.float32)
        for r in range(len(x)):
            _weigh(x[r], importance, r, size, 1, w)
            least, best_out[r] = F(3e38), 0
            for k in range(scales.shape[1]):
                s = scales[r, k]
                if uniform:
                    slx, sll = _level_sums(x[r], w, 0, size, _inverse(s), ends[0], ends[1])
                else:
                    slx, sll = _table_sums(x[r], w, 0, size, _inverse(s), ends[0], middles, rises)
                loss = s * s * sll - F(2) * s * slx
                if loss < least:
                    least, best_out[r] = loss, k

    return search  # type: ignore[no-any-return]


@_compiled
def nearest_in_rows(x: Any, middles: Any, codes: Any) -> None:
    """Fill codes u8[rows, n] with how many of the ascending middles f32[rows, k] of a row lie below x: f32[rows, n]."""
    for r in range(len(x)):
        for i in range(x.shape[1]):
            low, high = 0, middles.shape[1]
            while low < high:
                at = (low + high) // 2
                if middles[r, at] < x[r, i]:
                    low = at + 1
                else:
                    high = at
            codes[r, i] = low


@_compiled
def k_means(x: Any, w: Any, tables: Any) -> None:
    """Fill tables f32[rows, k], ascending, with the k-means of ascending rows x: f32[rows, n], weighted by w: alike.

    A row of at most k different numbers has them all in its table. Clusters are runs of the sorted row, whose sums
    are differences of running sums: an iteration is k binary searches.
    """
    rows, n = x.shape
    k = tables.shape[1]
    sum_w, sum_wx, sum_wxx = np.zeros((3, n + 1))
    centres, bounds = np.zeros(k), np.zeros(k + 1, np.int64)
    for r in range(rows):
        different = 1
        for i in range(n):
            sum_w[i + 1] = sum_w[i] + w[r, i]
            sum_wx[i + 1] = sum_wx[i] + w[r, i] * x[r, i]
            sum_wxx[i + 1] = sum_wxx[i] + w[r, i] * x[r, i] * x[r, i]
            different += 1 if i and x[r, i] != x[r, i - 1] else 0
        if different <= k:
            c = 0
            for i in range(n):
                if i and x[r, i] != x[r, i - 1]:
                    c += 1
                tables[r, c] = x[r, i]
            tables[r, c:] = x[r, n - 1]
            continue
        least = 1e300
        for start in range(2):
            for c in range(k):
                part = (c + 0.5) / k
                centres[c] = x[r, int(part * n)] if start == 0 else x[r, 0] + part * (x[r, n - 1] - x[r, 0])
            for _ in range(40):
                moved = False
                bounds[k] = n
                for c in range(1, k):
                    middle = (centres[c - 1] + centres[c]) / 2
                    bounds[c] = np.searchsorted(x[r], middle)
                for c in range(k):
                    first, last = bounds[c], bounds[c + 1]
                    mass = sum_w[last] - sum_w[first]
                    if mass > 0:
                        centre = (sum_wx[last] - sum_wx[first]) / mass
                        moved = moved or centre != centres[c]
                        centres[c] = centre
                if not moved:
                    break
            loss = 0.0
            for c in range(k):
                first, last = bounds[c], bounds[c + 1]
                mass, moment = sum_w[last] - sum_w[first], sum_wx[last] - sum_wx[first]
                loss += sum_wxx[last] - sum_wxx[first] - (moment * moment / mass if mass > 0 else 0.0)
            if loss < least:
                least = loss
                tables[r] = centres
