"""Which two thin matrices stand for a large one? Truncated singular value decompositions, in the metric of the inputs.

With Q* the matrix that does best on the inputs as they are (reconstruction.py) and H their second moment, the best
product of rank k is U U^T Q*, U the k leading left singular vectors of Q* H^1/2 (SVD-LLM, arXiv 2403.07378, as a
projection, so that nothing is inverted). ASVD (arXiv 2312.05821) has only a diagonal in place of H.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Method = Literal["svd", "asvd", "svd-llm"]

ASVD_ALPHA = 0.5
"""The power of how large inputs are by which ASVD scales columns."""


def metric(method: Method, hessian: Doubles) -> Doubles:
    """What a method takes for the second moment of the inputs: f64[in, in]."""
    if method == "svd-llm":
        return hessian
    diagonal = np.diagonal(hessian) if method == "asvd" else np.ones(len(hessian))
    found: Doubles = np.diag(diagonal**ASVD_ALPHA)
    return found


def squared_singular_values(weight: Doubles, second_moment: Doubles) -> Doubles:
    """Of weight @ second_moment^1/2, descending: f64[min(out, in)]."""
    rows, columns = weight.shape
    if rows <= columns:
        product = weight @ second_moment @ weight.T
    else:
        root = _root(second_moment)
        product = root @ (weight.T @ weight) @ root.T
    squares: Doubles = np.maximum(np.linalg.eigvalsh(product)[::-1], 0.0)
    return squares


def factors(weight: Doubles, second_moment: Doubles, rank: int) -> tuple[Doubles, Doubles]:
    """a[rank, in] and b[out, rank] with the least tr((W - b a) S (W - b a)^T), for W f64[out, in]."""
    from scipy.linalg import eigh

    rows, columns = weight.shape
    if rows <= columns:
        b = eigh(weight @ second_moment @ weight.T, subset_by_index=(rows - rank, rows - 1))[1]
    else:
        left = weight @ _root(second_moment).T
        b = left @ eigh(left.T @ left, subset_by_index=(columns - rank, columns - 1))[1]
        b /= np.maximum(np.linalg.norm(b, axis=0), np.finfo(np.float64).tiny)
    return balanced(b.T @ weight, b)


def refitted(weight: Doubles, hessian: Doubles, a: Doubles) -> Doubles:
    """The b that loses least beside `a`: f64[out, rank]."""
    crossed = a @ hessian
    inner = crossed @ a.T
    inner[np.diag_indices_from(inner)] += 1e-9 * np.trace(inner) / len(inner)
    return np.asarray(np.linalg.solve(inner, crossed @ weight.T).T, np.float64)


def balanced(a: Doubles, b: Doubles) -> tuple[Doubles, Doubles]:
    """The factors with rows of a as long as the columns of b, so that both fit in half precision and in few bits."""
    ratio = np.linalg.norm(a, axis=1) / np.maximum(np.linalg.norm(b, axis=0), np.finfo(np.float64).tiny)
    scale = np.sqrt(np.where(ratio > 0, ratio, 1))
    return a / scale[:, None], b * scale


def _root(second_moment: Doubles) -> Doubles:
    """R with R^T R = second_moment."""
    values, vectors = np.linalg.eigh(second_moment)
    found: Doubles = (vectors * np.sqrt(np.maximum(values, 0))).T
    return found
