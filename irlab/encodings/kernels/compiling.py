"""What the searches have in common: how they are compiled, rounding to f16, and the weights of errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

AnyArray = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

# Sums may be reordered, which is what makes them vector code; nothing here is NaN or infinite.
FAST: Final[dict[str, Any]] = {"nogil": True, "fastmath": True, "error_model": "numpy"}
INLINE: Final[dict[str, Any]] = {**FAST, "inline": "always"}
F: Final = np.float32
STRIDE: Final = 4
"""Rows of lanes that are summed before the sums are stored; sizes of groups are multiples of it."""
Number: TypeAlias = Any
"""An f32 in compiled code."""


def compiled(function: Callable[..., None]) -> Any:
    """`function` as compiled code, kept on disk for the next process where there is a place for it."""
    try:
        return njit(cache=True, **FAST)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return njit(**FAST)(function)


@njit(**INLINE)  # type: ignore[untyped-decorator]
def half(x: Number) -> Number:
    """x rounded to a number that f16 has (below 2^-14, to a multiple of 2^-24)."""
    bits = np.float32(x).view(np.uint32)
    even = (bits >> 13) & 1
    rounded = np.uint32((bits + 0xFFF + even) & 0xFFFFE000).view(np.float32)
    return rounded if abs(x) >= F(6.103515625e-05) else np.rint(x * F(16777216)) * F(5.9604644775390625e-08)


@njit(**INLINE)  # type: ignore[untyped-decorator]
def weigh(x: Floats, importance: Floats, row: int, size: int, subs: int, w: Floats) -> None:
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


@njit(**INLINE)  # type: ignore[untyped-decorator]
def clip(value: Number, low: Number, high: Number) -> Number:
    """`value` rounded to an integer from `low` to `high`."""
    return min(max(np.rint(value), low), high)


@njit(**INLINE)  # type: ignore[untyped-decorator]
def inverse_of(value: Number) -> Number:
    """1 / value, or 0 for 0."""
    return F(1) / value if value != F(0) else F(0)


@njit(**INLINE)  # type: ignore[untyped-decorator]
def side_by_side(flat: Floats, size: int, subs: int, lanes: Floats) -> None:
    """Let lanes[size, subs] be the groups of a super-block flat[subs * size], one to a column."""
    for k in range(size):
        for j in range(subs):
            lanes[k, j] = flat[j * size + k]
