"""Which scale of a group of integers loses least? A search around the scale that just spans the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

AnyArray = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """The codes lowest..highest of an integer encoding, and the NumPy dtype in which scales are stored."""

    lowest: int
    highest: int
    symmetric: bool
    scale: np.dtype[Any]


def search_scales(groups: Floats, grid: Grid, importance: Floats | None) -> tuple[AnyArray, AnyArray, AnyArray | None]:
    """Codes, scales and zero points of groups[n, size]."""
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)
    if grid.symmetric:
        scales = (extreme / grid.lowest).astype(grid.scale)
        zeros = np.zeros(extreme.shape, np.float32)
    else:
        low, high = np.minimum(groups.min(1, keepdims=True), 0), np.maximum(groups.max(1, keepdims=True), 0)
        scales = ((high - low) / grid.highest).astype(grid.scale)
        zeros = np.rint(-low / np.where(scales == 0, 1, scales.astype(np.float32)))
    step = scales.astype(np.float32)
    if not np.isfinite(step).all():
        raise InputError("a weight is too large for its scale, or not finite")
    codes = np.clip(np.rint(groups / np.where(step == 0, np.inf, step)) + zeros, grid.lowest, grid.highest)
    kind = np.int8 if grid.symmetric else np.uint8
    return codes.astype(kind), scales, None if grid.symmetric else zeros.astype(np.uint8)
