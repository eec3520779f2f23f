"""How GGUF says rotary frequencies: a base, a scaling, or a table of factors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Frequencies = npt.NDArray[np.float64]

TOLERANCE = 2e-6
"""Relative difference of frequencies that counts as none: they are computed in f32 on both sides."""


@dataclass(frozen=True)
class RopeForm:
    """inv_freq[i] = base ** (-i / n) / (linear * factors[i]); `factors` is empty where all of them are 1."""

    base: float
    linear: float = 1.0
    factors: tuple[float, ...] = ()


def rope_form(inv_freq: npt.NDArray[np.float32], theta: float | None = None) -> RopeForm:
    """The simplest form of inv_freq: f32[n].

    `theta` is the base that the model's configuration names: tried first, because a base measured off f32 numbers is
    less round. The form always reproduces the frequencies, whatever the configuration said.
    """
    wanted = inv_freq.astype(np.float64)
    n = len(wanted)
    candidates = [float(theta)] if theta else []
    if n > 1 and wanted[1] > 0 and wanted[0] > 0:
        measured = float((wanted[0] / wanted[1]) ** n)
        candidates += [float(f"{measured:.4g}"), measured]
    candidates = [c for c in candidates if c > 1] or [10000.0]
    for base in candidates:
        ratio = _plain(base, n) / wanted
        if np.allclose(ratio, ratio[0], rtol=TOLERANCE, atol=0):
            linear = 1.0 if abs(ratio[0] - 1) < TOLERANCE else float(ratio[0])
            return RopeForm(base, linear)
    base = candidates[0]
    return RopeForm(base, factors=tuple((_plain(base, n) / wanted).tolist()))


def _plain(base: float, n: int) -> Frequencies:
    plain: Frequencies = base ** (-np.arange(n, dtype=np.float64) / n)
    return plain
