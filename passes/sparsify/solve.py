"""Which weights go, and what do those that stay become? Masks by score or by compensated errors, refined by ADMM.

min over Q of tr((Q - W) H (Q - W)^T)   with Q zero outside a mask that keeps what the pattern allows
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from irlab.reconstruction import conjugate_gradients

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

BLOCK: Final = 128
"""Columns whose errors reach the columns beyond as one matrix product."""

_STEPS: Final = 25
_PENALTY: Final = np.float32(0.1)
_GROWTH: Final = np.float32(1.1)
"""The penalty of ADMM, relative to a Hessian of unit diagonal, and what it grows by in each step."""


@dataclass(frozen=True)
class Pattern:
    """How many weights stay: a share of all (`keep_of` 0), or `keep` of every `keep_of` neighbours in a row."""

    sparsity: float
    keep: int = 0
    keep_of: int = 0

    def largest(self, scores: Floats, rows: bool = False) -> Mask:
        """The mask of what scores[out, in] keep; of each row as much (`rows`), or over the matrix."""
        if self.keep_of:
            groups = scores.reshape(len(scores), -1, self.keep_of)
            order = np.argsort(-groups, axis=-1, kind="stable")
            mask = np.zeros(groups.shape, bool)
            np.put_along_axis(mask, order[..., : self.keep], True, -1)
            return mask.reshape(scores.shape)
        table = scores if rows else scores.reshape(1, -1)
        gone = round(self.sparsity * table.shape[1])
        mask = np.ones(table.shape, bool)
        if gone:
            lowest = np.argpartition(table, gone - 1, axis=1)[:, :gone]
            np.put_along_axis(mask, lowest, False, 1)
        return mask.reshape(scores.shape)


def sparse_gpt(weight: Floats, factor: Floats, pattern: Pattern) -> Floats:
    """SparseGPT: block by block the weights with the least w^2 / U_jj^2 go, column by column, and the columns to come
    make up for them. `factor`: U of the inverse Hessian, f32[in, in]."""
    rest = np.ascontiguousarray(weight.T)
    columns = len(rest)
    diagonal = np.diagonal(factor)
    for start in range(0, columns, BLOCK):
        stop = min(columns, start + BLOCK)
        span = slice(start, stop)
        if not pattern.keep_of:
            kept = pattern.largest(np.ascontiguousarray((rest[span] / diagonal[span, None]).T ** 2)).T
        errors = np.zeros((stop - start, rest.shape[1]), np.float32)
        for j in range(start, stop):
            if pattern.keep_of and j % pattern.keep_of == 0:
                group = slice(j, j + pattern.keep_of)
                kept_group = pattern.largest((rest[group] / diagonal[group, None]).T ** 2).T
            keep = kept_group[j % pattern.keep_of] if pattern.keep_of else kept[j - start]
            error = np.where(keep, 0, rest[j]) / factor[j, j]
            rest[j] = np.where(keep, rest[j], 0)
            errors[j - start] = error
            rest[j + 1 : stop] -= factor[j, j + 1 : stop, None] * error
        if stop < columns:
            rest[stop:] -= factor[span, stop:].T @ errors
    return np.ascontiguousarray(rest.T)


def refit(weight: Floats, mask: Mask, hessian: Floats, start: Floats, steps: int = 10) -> Floats:
    """The best weights inside `mask`, by conjugate gradients on all rows at once (preconditioned by the diagonal)."""
    inverse = (1 / np.diagonal(hessian)).astype(np.float32)
    begun = np.where(mask, start, 0).astype(np.float32)
    residual = np.where(mask, (weight - begun) @ hessian, 0)
    return conjugate_gradients(lambda x: np.where(mask, x @ hessian, 0), begun, residual, inverse, steps)


def refined(weight: Floats, start: Floats, hessian: Doubles, pattern: Pattern) -> Floats:
    """What loses least: `start` with its weights fitted, or where ADMM leads from there."""
    normal = hessian.astype(np.float32)
    found = [refit(weight, start != 0, normal, start)]
    led = admm(weight, hessian, pattern, found[0])
    found.append(refit(weight, led != 0, normal, led))
    return min(found, key=lambda w: float(np.vdot((w - weight) @ normal, w - weight)))


def admm(weight: Floats, hessian: Doubles, pattern: Pattern, start: Floats) -> Floats:
    """ALPS: dense weights W and sparse ones D are drawn together by a penalty that grows, and D becomes the projection
    of W onto the pattern. Columns are scaled to a Hessian of unit diagonal; one factorisation serves all steps."""
    by = np.sqrt(np.diagonal(hessian))
    normal = hessian / by / by[:, None]
    values, vectors = (part.astype(np.float32) for part in np.linalg.eigh(normal))
    scale = by.astype(np.float32)
    pull = (weight * scale) @ normal.astype(np.float32)
    sparse, dual, penalty = start * scale, np.zeros_like(weight), _PENALTY
    for _ in range(_STEPS):
        dense = ((pull - dual + penalty * sparse) @ vectors / (values + penalty)) @ vectors.T
        wanted = dense + dual / penalty
        sparse = np.where(pattern.largest(np.square(wanted)), wanted, 0)
        dual += penalty * (dense - sparse)
        penalty *= _GROWTH
    return (sparse / scale).astype(np.float32)
