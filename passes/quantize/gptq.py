"""How are columns rounded so that later ones make up for the errors of earlier ones? GPTQ, onto any encoding's grid.

Frantar et al. 2022 (arXiv 2210.17323): with H = E[x x^T] and H^-1 = U^T U, U upper triangular, rounding column j with
the error e = (w_j - q_j) / U_jj is best followed by w_k -= e U_jk for all columns k to come. Columns with the largest
H_jj go first (act-order), while scales are chosen beforehand (static groups), so that the order shows nowhere in what
is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
import numpy.typing as npt

from irlab.encodings import Codes, Encoding, Extent
from irlab.errors import InputError
from irlab.options import Bounds

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

Damping = Annotated[float, Bounds(0)]
"""An option: what is added to the diagonal of a Hessian, relative to its mean."""

BLOCK: Final = 128
"""Columns whose errors reach the columns beyond as one matrix product."""

_SPARSE: Final = 0.95
"""Below this share of numbers that are not zero a matrix is taken to be sparse."""

_MORE_DAMPING: Final = (1.0, 10.0, 100.0)
"""What the damping is multiplied by until the Hessian can be factored."""


@dataclass(frozen=True)
class Compensation:
    """What the Hessian of an input says about rounding the matrices that read it: the same for all of them.

    `order`: columns in the order in which they are rounded. `factor`: U of the Hessian in that order, f32[in, in].
    `importance`: the mean square of each input, f32[in], in the order of the matrix.
    """

    order: npt.NDArray[np.intp]
    factor: Floats
    importance: Floats

    @classmethod
    def of(cls, hessian: Doubles, damping: float, act_order: bool) -> Compensation:
        """From E[x x^T]. `damping`: what is added to the diagonal, relative to its mean. Raises InputError where no
        damping makes the matrix definite."""
        diagonal = np.diagonal(hessian).copy()
        if not np.isfinite(diagonal).all():
            raise InputError("the Hessian is not finite", "run in f32 (cast{dtype=f32})")
        mean = float(diagonal.mean())
        order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(len(diagonal))
        # A channel that was never seen is rounded to nearest: its error neither comes from nor goes to others.
        dead = diagonal[order] == 0
        permuted = hessian[np.ix_(order, order)]
        permuted[dead, dead] = mean or 1.0
        for more in _MORE_DAMPING:
            factor = _inverse_factor(permuted, damping * more * (mean or 1.0))
            if factor is not None:
                return cls(order, factor, np.maximum(diagonal, damping * mean).astype(np.float32))
        raise InputError("the Hessian is singular", "calibrate on more text, or give a larger damping")


def _inverse_factor(hessian: Doubles, damping: float) -> Floats | None:
    """U, upper triangular, with (H + damping)^-1 = U^T U, or None where H + damping is not definite.

    Seen from the last row and column to the first, H has a Cholesky factor R that is upper triangular, H = R R^T; then
    U = R^-1. One factorisation and one triangular inverse, half the work of factoring the inverse.
    """
    from scipy.linalg import lapack

    flipped = np.array(hessian[::-1, ::-1], order="F")
    flipped[np.diag_indices_from(flipped)] += damping
    lower, failed = lapack.dpotrf(flipped, lower=1, clean=1, overwrite_a=1)
    if failed:
        return None
    inverse, failed = lapack.dtrtri(lower, lower=1, overwrite_c=1)
    if failed or not np.isfinite(inverse).all():
        return None
    return np.ascontiguousarray(inverse[::-1, ::-1], np.float32)


def compensated_codes(
    weight: Floats, compensation: Compensation, encoding: Encoding, extent: Extent | None = None
) -> Codes:
    """The codes of `weight`, f32[out, in], rounded column by column, under a scale of the tensor for `extent`. Zeros
    stay zero, on grids that have one: in a sparse matrix only what is left makes up for errors. Raises InputError for
    encodings without a grid."""
    order, factor = compensation.order, compensation.factor
    grid = encoding.fit(weight, compensation.importance, extent)
    # Transposed, so that a column is contiguous.
    rest = np.ascontiguousarray(weight.T[order])
    columns = len(order)
    kept = rest != 0 if np.count_nonzero(rest) < _SPARSE * rest.size else None
    errors = np.empty((min(BLOCK, columns), len(weight)), np.float32)
    for start in range(0, columns, BLOCK):
        stop = min(columns, start + BLOCK)
        for j in range(start, stop):
            rounded = grid.round(int(order[j]), rest[j])
            error = errors[j - start]
            np.subtract(rest[j], rounded, out=error)
            error /= factor[j, j]
            rest[j + 1 : stop] -= factor[j, j + 1 : stop, None] * error
            if kept is not None:
                rest[j + 1 : stop] *= kept[j + 1 : stop]
        if stop < columns:
            rest[stop:] -= factor[start:stop, stop:].T @ errors[: stop - start]
            if kept is not None:
                rest[stop:] *= kept[stop:]
    return grid.codes()
