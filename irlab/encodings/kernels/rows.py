"""Tables of rows: k-means of their numbers, and the codes of the nearest."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compiling import compiled


@compiled
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


@compiled
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
