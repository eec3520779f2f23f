"""Which matrix does on its inputs what the original one did on its own? The least-squares problem behind many passes.

    min over Q of  E |W x0 - Q x|^2 + damping |W - Q|^2        H = E[x x^T], C = E[x0 x^T]

Without a constraint Q* = (W C + damping W) (H + damping)^-1 is best, and any other Q loses more by the trace of
(Q - Q*) (H + damping) (Q - Q*)^T. So a method that wants Q to be sparse, of low rank or on a grid works as ever, with
Q* for W: its errors are then those of the original output, and those of the layers before are made up for. As long as
the inputs are the original ones, C = H and Q* = W. (Li et al. 2025, GPTAQ, arXiv 2504.02692, do this for GPTQ.)
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .analysis import InputHessian, LayerStatistics, OriginalInputs
from .errors import InputError
from .floats import as_f32
from .weights import check_finite

if TYPE_CHECKING:
    from .layers import Layer

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """The problem for all matrices that read one value. `hessian`: H with its damping, f64[in, in]; `drift`: what W is
    multiplied by to give Q*, f64[in, in], or None where nothing has changed."""

    hessian: Doubles
    drift: Doubles | None

    @classmethod
    def of(cls, name: str, statistics: LayerStatistics, damping: float) -> Problem:
        """For the weight `name`; `damping` is relative to the mean of the diagonal. Raises InputError where the Hessian
        is not finite or not definite."""
        hessian = statistics[InputHessian][name].matrix
        diagonal = np.diagonal(hessian)
        if not np.isfinite(diagonal).all():
            raise InputError("the Hessian is not finite", "run in f32 (cast{dtype=f32})")
        extra = np.full(len(diagonal), damping * (float(diagonal.mean()) or 1.0))
        # What a channel that was never seen is multiplied by does not matter: it stays as it is.
        extra[diagonal == 0] = float(diagonal.mean()) or 1.0
        damped = hessian + np.diag(extra)
        if OriginalInputs not in statistics:
            return cls(damped, None)
        cross = statistics[OriginalInputs][name].matrix
        if np.allclose(cross, hessian, rtol=0, atol=1e-6 * float(diagonal.max(initial=0.0))):
            return cls(damped, None)
        try:
            drift = np.linalg.solve(damped, (cross + np.diag(extra)).T).T
        except np.linalg.LinAlgError:
            raise InputError("the Hessian is singular", "calibrate on more text, or give a larger damping") from None
        return cls(damped, drift.astype(np.float64, copy=False))

    def target(self, weight: Floats) -> Floats:
        """Q* for the original `weight`: f32[out, in]."""
        return weight if self.drift is None else (weight @ self.drift.astype(np.float32)).astype(np.float32)

    def loss(self, target: Floats, found: Floats) -> float:
        """What `found` loses more than `target`."""
        off = (found - target).astype(np.float64)
        return float(np.vdot(off @ self.hessian, off))


def problems(
    layer: Layer, statistics: LayerStatistics, names: Container[str], damping: float
) -> Iterator[tuple[Problem, Iterator[tuple[str, Floats]]]]:
    """The problem of each value that matrices of `layer` called `names` read, and those matrices, f32[out, in] by name,
    read one after the other. Raises InputError as `Problem.of`, and for a matrix that is not finite."""
    for sharing in statistics[InputHessian].sharing():
        wanted = [name for name in sharing if name in names and name in layer.weights]
        if wanted:
            yield Problem.of(wanted[0], statistics, damping), _matrices(layer, wanted)


def _matrices(layer: Layer, names: Sequence[str]) -> Iterator[tuple[str, Floats]]:
    for name in names:
        weight = as_f32(layer.weights[name].recipe.read())
        check_finite(name, weight)
        yield name, weight


def conjugate_gradients(
    product: Callable[[Floats], Floats], start: Floats, residual: Floats, inverse: Floats, steps: int
) -> Floats:
    """`start` after `steps` steps towards the x with product(x) = b, each row by itself. `product` is symmetric and
    definite, `inverse` about the inverse of its diagonal, and `residual` b - product(start)."""
    found, residual = start.copy(), residual.copy()
    z = residual * inverse
    direction, energy = z.copy(), np.einsum("ij,ij->i", residual, z)[:, None]
    for _ in range(steps):
        moved = product(direction)
        bend = np.einsum("ij,ij->i", direction, moved)[:, None]
        step = np.divide(energy, bend, out=np.zeros_like(energy), where=bend > 0)
        found += step * direction
        residual -= step * moved
        z = residual * inverse
        after = np.einsum("ij,ij->i", residual, z)[:, None]
        direction = z + np.divide(after, energy, out=np.zeros_like(energy), where=energy > 0) * direction
        energy = after
    return found
