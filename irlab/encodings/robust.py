"""Which codes leave few large errors, rather than the least squares? Half-quadratic splitting, on any encoding.

Badri & Shaji 2023 (HQQ, https://mobiusml.github.io/hqq_blog): sum |x - Q|^p with p < 1 is minimised by taking turns.
The errors that are large for good are set apart, e = shrink(x - Q), and x - e is encoded again, by least squares.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from .base import AnyArray, Codes, Encoding, Floats
from .grid import Extent

_ROUNDS: Final = 4
_STRENGTH: Final = 1.0
"""How much is set apart: an error of the mean size of its row just is not."""


def encode_robustly(encoding: Encoding, rows: AnyArray, norm: float, extent: Extent | None) -> Codes:
    """The codes of `rows`, floats[..., columns], with the least sum of errors to the power `norm` that was found. Rows
    are independent of each other."""
    x = np.asarray(rows, np.float32)
    best = encoding.encode(x, extent=extent)
    error = x - encoding.decode(best)
    least = _loss(error, norm)
    for _ in range(_ROUNDS):
        codes = encoding.encode(x - _shrunk(error, norm), extent=extent)
        error = x - encoding.decode(codes)
        loss = _loss(error, norm)
        better = loss < least
        best = {name: np.where(_beside(better, part), part, best[name]) for name, part in codes.items()}
        least = np.where(better, loss, least)
    return best


def _loss(error: Floats, norm: float) -> Floats:
    found: Floats = (np.abs(error) ** norm).sum(-1)
    return found


def _shrunk(error: Floats, norm: float) -> Floats:
    """The proximal step for |e|^norm, in units of the mean error of each row."""
    size = np.abs(error)
    unit = np.maximum(size.mean(-1, keepdims=True), np.finfo(np.float32).tiny)
    with np.errstate(divide="ignore", over="ignore"):
        kept = np.maximum(size / unit - _STRENGTH * (size / unit) ** (norm - 1), 0)
    shrunk: Floats = np.sign(error) * kept * unit
    return shrunk


def _beside(rows: AnyArray, part: AnyArray) -> AnyArray:
    """A choice of rows, to be broadcast over a part."""
    return rows.reshape(*rows.shape, *(1,) * (part.ndim - rows.ndim))
