"""Which torch function runs which op: one table, filled from a file per dialect."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ..errors import IRError
from ..ir import Op

if TYPE_CHECKING:
    from .program import Run

Tensors: TypeAlias = "torch.Tensor | tuple[torch.Tensor, ...]"

Kernel: TypeAlias = "Callable[..., Tensors]"
"""kernel(op, run, *operands) -> one tensor per result. Operands are plain tensors (encoded weights arrive decoded),
None where an optional one is missing. Kernels change nothing in place, so that gradients flow through them."""

Table: TypeAlias = "dict[type[Op], Kernel]"


def plain(function: Callable[..., Tensors]) -> Kernel:
    """The kernel of an op whose attributes do not matter: `function` of the operands."""

    def kernel(op: Op, run: Run, *operands: Any) -> Tensors:
        return function(*operands)

    return kernel


def kernel_of(cls: type[Op]) -> Kernel:
    """The kernel of an op class; raises IRError if it has none."""
    from .call_kernel import CALL_KERNELS
    from .nn_kernels import NN_KERNELS
    from .prim_kernels import PRIM_KERNELS

    for table in (PRIM_KERNELS, NN_KERNELS, CALL_KERNELS):
        if cls in table:
            return table[cls]
    raise IRError(f"the interpreter cannot run {cls.opname}", "give the op a decomposition")
