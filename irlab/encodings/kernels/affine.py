"""Which scales and offsets of a super-block lose least? Groups are d * a * code - dmin * b: Q2_K, Q4_K, Q5_K."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from .compiling import INLINE, STRIDE, F, Floats, Number, clip, compiled, half, inverse_of, side_by_side, weigh
from .lines import line_fit


@njit(**INLINE)  # type: ignore[untyped-decorator]
def _line_sums(
    x: Floats,
    w: Floats,
    inverse: Floats,
    low: Floats,
    size: int,
    lanes: int,
    highest: Number,
    q: Floats,
    qq: Floats,
    qx: Floats,
) -> None:
    """For each group of x[size, lanes], the sums of w * c, w * c^2 and w * c * x for its codes c."""
    q[:] = qq[:] = qx[:] = F(0)
    for start in range(0, size, STRIDE):
        for j in range(lanes):
            sum_q, sum_qq, sum_qx = F(0), F(0), F(0)
            for k in range(start, start + STRIDE):
                code = min(max(np.rint((x[k, j] - low[j]) * inverse[j]), F(0)), highest)
                wc = w[k, j] * code
                sum_q += wc
                sum_qq += wc * code
                sum_qx += wc * x[k, j]
            q[j] += sum_q
            qq[j] += sum_qq
            qx[j] += sum_qx


@cache
def affine(size: int, subs: int, highest_code: int, highest_scale: int, turns: int, reach: int) -> Callable[..., None]:
    """A search of affine super-blocks: (x f32[n, block], importance f32[m, block], steps f32[:]) fills d f32[n],
    dmin f32[n] (numbers of f16), a and b u8[n, subs]. `steps` are numbers of steps that may span a group. Row i of x
    has the weights of row i % m; m = 0: by themselves."""
    highest, most = F(highest_code), F(highest_scale)

    @compiled
    def search(blocks: Any, importance: Any, steps: Any, d_out: Any, dmin_out: Any, a_out: Any, b_out: Any) -> None:
        lanes = a_out.shape[1]  # `subs`, unknown to the compiler: it would unroll loops of 8 instead of making vectors
        flat = np.empty(size * subs, np.float32)
        x, w = np.empty((size, subs), np.float32), np.empty((size, subs), np.float32)
        lowest, spread, sw, swx, scale, offset, best = np.zeros((7, subs), np.float32)
        inverse, low, q, qq, qx = np.zeros((5, subs), np.float32)
        tried_a, tried_b, a, b, best_q, best_qq, best_qx = np.zeros((7, subs), np.float32)
        for r in range(len(blocks)):
            weigh(blocks[r], importance, r, size, subs, flat)
            side_by_side(flat, size, subs, w)
            side_by_side(blocks[r], size, subs, x)
            # Each group by itself: its lowest number is at most zero.
            lowest[:] = spread[:] = sw[:] = swx[:] = F(0)
            spread[:] = x[0]
            for k in range(size):
                for j in range(lanes):
                    lowest[j] = min(lowest[j], x[k, j])
                    spread[j] = max(spread[j], x[k, j])
                    sw[j] += w[k, j]
                    swx[j] += w[k, j] * x[k, j]
            for j in range(lanes):
                spread[j] = max(spread[j] - lowest[j], F(0))
                scale[j], offset[j], best[j] = F(0), lowest[j], F(0)
            for t in range(len(steps) + 2):
                # At the end, rounding under the best line so far.
                for j in range(lanes):
                    inverse[j] = steps[t] * inverse_of(spread[j]) if t < len(steps) else inverse_of(scale[j])
                    low[j] = lowest[j] if t < len(steps) else offset[j]
                _line_sums(x, w, inverse, low, size, lanes, highest, q, qq, qx)
                for j in range(lanes):
                    s, m, gain = line_fit(sw[j], swx[j], q[j], qq[j], qx[j], False)
                    better = gain > best[j] and s > F(0)
                    scale[j] = s if better else scale[j]
                    offset[j] = m if better else offset[j]
                    best[j] = gain if better else best[j]
            top_scale, top_offset = F(0), F(0)
            for j in range(lanes):
                if scale[j] == F(0) and sw[j] > F(0) and spread[j] > F(0):
                    offset[j] = min(swx[j] / sw[j], F(0))
                top_scale = max(top_scale, scale[j])
                top_offset = max(top_offset, -offset[j])
            # All of them under one d and dmin.
            d, dmin, kept = half(top_scale / most), half(top_offset / most), F(-1)
            for _turn in range(turns):
                per_d, per_dmin = inverse_of(d), inverse_of(dmin)
                best[:] = F(-3e38)
                for neighbour in range(-reach, reach + 1):
                    for j in range(lanes):
                        tried_a[j] = clip(np.rint(scale[j] * per_d) + F(neighbour), F(0), most)
                        tried_b[j] = clip(-offset[j] * per_dmin, F(0), most)
                        inverse[j] = inverse_of(d * tried_a[j])
                    for _ in range(2):
                        for j in range(lanes):
                            low[j] = -dmin * tried_b[j]
                        _line_sums(x, w, inverse, low, size, lanes, highest, q, qq, qx)
                        moved = F(0)
                        for j in range(lanes):
                            s, m = d * tried_a[j], dmin * tried_b[j]
                            gain = F(2) * (s * qx[j] - m * swx[j])
                            gain -= s * s * qq[j] - F(2) * s * m * q[j] + m * m * sw[j]
                            better = gain > best[j]
                            best[j] = gain if better else best[j]
                            best_q[j] = q[j] if better else best_q[j]
                            best_qq[j] = qq[j] if better else best_qq[j]
                            best_qx[j] = qx[j] if better else best_qx[j]
                            a[j] = tried_a[j] if better else a[j]
                            b[j] = tried_b[j] if better else b[j]
                            # The offset that these codes want.
                            wanted = clip((s * q[j] - swx[j]) * inverse_of(sw[j]) * per_dmin, F(0), most)
                            moved += abs(wanted - tried_b[j])
                            tried_b[j] = wanted
                        if moved == F(0):
                            break
                total, aaqq, abq, bb, aqx, bx = F(0), F(0), F(0), F(0), F(0), F(0)
                for j in range(lanes):
                    total += best[j]
                    aaqq += a[j] * a[j] * best_qq[j]
                    abq += a[j] * b[j] * best_q[j]
                    bb += b[j] * b[j] * sw[j]
                    aqx += a[j] * best_qx[j]
                    bx += b[j] * swx[j]
                if total <= kept:
                    break
                kept, d_out[r], dmin_out[r] = total, d, dmin
                for j in range(lanes):
                    a_out[r, j], b_out[r, j] = np.uint8(a[j]), np.uint8(b[j])
                determinant = aaqq * bb - abq * abq
                if bb > F(0) and determinant > F(1e-6) * aaqq * bb:
                    new_d, new_dmin = (aqx * bb - bx * abq) / determinant, (aqx * abq - bx * aaqq) / determinant
                else:
                    new_d, new_dmin = F(0), F(-1)
                if new_dmin < F(0):
                    new_d, new_dmin = (aqx / aaqq if aaqq > F(0) else F(0)), F(0)
                if new_d <= F(0):
                    break
                d, dmin = half(new_d), half(new_dmin)

    return search  # type: ignore[no-any-return]
