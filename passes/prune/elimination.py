"""Which inputs of a matrix are missed least, and how do the others make up for them? Optimal brain surgery, in blocks.

With H = E[x x^T], leaving out the inputs B of y = W x costs at least tr(W_B ([H^-1]_BB)^-1 W_B^T), which is reached by
W -= W_B ([H^-1]_BB)^-1 [H^-1]_B: (Hassibi & Stork 1992). What is missed least is left out first, a few at a time, and
W and H^-1 are those of what remains, so that of two inputs that say the same one is kept. The result is the
least-squares refit W' = W H_:S (H_SS)^-1 on the inputs S that stay (Lin et al. 2024, MoDeGPT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from irlab.errors import InputError

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Score = Literal["obs", "activation", "magnitude", "taylor"]

STEPS: Final = 64
"""Units are left out in about so many steps; scores are computed again between."""

_COLUMNS: Final = 512
"""So many columns of H^-1 are computed at a time."""

_MORE_DAMPING: Final = (1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Elimination:
    """`removed`: units in the order in which they went. `cost`: the output's squared error after each of them.
    `weight`: f64[out, in] afterwards, with zeros at removed inputs; the others make up for them."""

    removed: Indices
    cost: Doubles
    weight: Doubles


def eliminate(
    weight: Doubles, hessian: Doubles, units: Indices, classes: Indices, removals: int, damping: float
) -> Elimination:
    """Leave out `removals` units of each class. Column j of `weight`, f64[out, in], belongs to unit `units[j]`, -1 for
    none; unit u is one of class `classes[u]`. Raises InputError where numbers are not finite."""
    if not np.isfinite(weight).all() or not np.isfinite(hessian).all():
        raise InputError("the scores are not finite", "run in f32 (cast{dtype=f32}), or check the weights")
    weight, inverse = weight.copy(), _inverse(hessian, damping)
    members = [np.flatnonzero(units == unit) for unit in range(len(classes))]
    single = all(len(columns) == 1 for columns in members)
    alive = np.ones(len(classes), bool)
    removed: list[int] = []
    cost: list[float] = []
    left = np.full(int(classes.max()) + 1, removals)
    step = max(1, removals // STEPS)
    while left.any():
        scores = _single_scores(weight, inverse, members) if single else _block_scores(weight, inverse, members, alive)
        scores[~alive] = np.inf
        chosen: list[int] = []
        for each in np.flatnonzero(left):
            of_class = np.flatnonzero((classes == each) & alive)
            best = of_class[np.argsort(scores[of_class], kind="stable")[: min(step, left[each])]]
            chosen += best.tolist()
            left[each] -= len(best)
        columns = np.concatenate([members[unit] for unit in chosen])
        together = _leave_out(weight, inverse, columns)
        alive[chosen] = False
        removed += chosen
        before = cost[-1] if cost else 0.0
        # Single scores do not know of the others of this step; in sum they are what the step costs.
        shares = np.cumsum(scores[chosen])
        cost += (before + shares * (together / shares[-1] if shares[-1] > 0 else 0.0)).tolist()
    return Elimination(np.array(removed, np.intp), np.array(cost), weight)


def _inverse(hessian: Doubles, damping: float) -> Doubles:
    from scipy.linalg import lapack

    mean = float(np.diagonal(hessian).mean()) or 1.0
    for more in _MORE_DAMPING:
        damped = np.array(hessian, order="F")
        damped[np.diag_indices_from(damped)] += damping * more * mean
        factor, failed = lapack.dpotrf(damped, lower=1, overwrite_a=1)
        if not failed:
            inverse, failed = lapack.dpotri(factor, lower=1, overwrite_c=1)
            if not failed and np.isfinite(inverse).all():
                _mirror(inverse)
                return np.asarray(inverse)
    raise InputError("the Hessian is singular", "calibrate on more text, or give a larger damping")


def _mirror(lower: Doubles) -> None:
    """Fill the upper triangle of a symmetric matrix from its lower one, in place: a wide layer's is the largest array
    of a whole run."""
    for start in range(0, len(lower), _COLUMNS):
        block = slice(start, start + _COLUMNS)
        square = lower[block, block]
        square[:] = np.tril(square) + np.tril(square, -1).T
        lower[block, start + _COLUMNS :] = lower[start + _COLUMNS :, block].T


def _single_scores(weight: Doubles, inverse: Doubles, members: list[Indices]) -> Doubles:
    columns = np.concatenate(members)
    diagonal = np.maximum(np.diagonal(inverse)[columns], np.finfo(np.float64).tiny)
    return np.asarray(np.square(weight[:, columns]).sum(0) / diagonal)


def _block_scores(weight: Doubles, inverse: Doubles, members: list[Indices], alive: npt.NDArray[np.bool_]) -> Doubles:
    scores = np.zeros(len(members))
    for unit in np.flatnonzero(alive):
        columns = members[unit]
        part = weight[:, columns]
        scores[unit] = np.vdot(part.T, np.linalg.solve(inverse[np.ix_(columns, columns)], part.T))
    return scores


def _leave_out(weight: Doubles, inverse: Doubles, columns: Indices) -> float:
    """Remove `columns` from W and H^-1, in place; gives what it costs."""
    solved = np.linalg.solve(inverse[np.ix_(columns, columns)], inverse[columns])
    part = weight[:, columns]
    cost = float(np.vdot(part.T, np.linalg.solve(inverse[np.ix_(columns, columns)], part.T)))
    weight -= part @ solved
    through = inverse[:, columns]
    for start in range(0, len(inverse), _COLUMNS):
        block = slice(start, start + _COLUMNS)
        inverse[:, block] -= through @ solved[:, block]
    weight[:, columns] = 0
    inverse[columns] = inverse[:, columns] = 0
    return cost


def least(scores: Doubles, classes: Indices, removals: int) -> Indices:
    """The `removals` units with the smallest scores of each class. Raises InputError for scores that are not finite."""
    if not np.isfinite(scores).all():
        raise InputError("the scores are not finite", "run in f32 (cast{dtype=f32}), or check the weights")
    found = [
        of_class[np.argsort(scores[of_class], kind="stable")[:removals]]
        for of_class in (np.flatnonzero(classes == each) for each in range(int(classes.max()) + 1))
    ]
    return np.concatenate(found)


def refit(weight: Doubles, hessian: Doubles, stays: Indices, damping: float) -> Doubles:
    """`weight`[:, stays] with the least squared error of its output, when the other inputs are left out."""
    from scipy.linalg import cho_factor, cho_solve

    goes = np.setdiff1d(np.arange(weight.shape[1]), stays)
    inner = hessian[np.ix_(stays, stays)].copy()
    inner[np.diag_indices_from(inner)] += damping * (float(np.diagonal(hessian).mean()) or 1.0)
    through = cho_solve(cho_factor(inner, lower=True), hessian[np.ix_(stays, goes)])
    return np.asarray(weight[:, stays] + weight[:, goes] @ through.T)
