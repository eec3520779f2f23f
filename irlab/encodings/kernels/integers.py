"""What do the codes of integers under given scales lose? The sums that search.py compares scales by."""

from __future__ import annotations

import numpy as np
from numba import njit

from .compiling import F, Floats


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
