"""Calls of ATen ops by name, and what keeps a hostile name or argument from doing anything but arithmetic."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch

from ..errors import InputError
from ..ops.call import Call, bind
from .kernels import Table

if TYPE_CHECKING:
    from .program import Run

_TOUCH_THE_SYSTEM: Final = {"from_file"}
"""ATen ops that do more than compute: `from_file` maps, and may create, a file of any name."""


@cache
def overload(target: str) -> Any:
    """The functional ATen overload that `target` ("aten.nonzero.default") names; InputError for anything else."""
    _, name, overload_name = target.split(".")
    if name.startswith("__") or overload_name.startswith("_") or name in _TOUCH_THE_SYSTEM:
        raise InputError(f"call @{target} is not allowed")
    packet = getattr(torch.ops.aten, name, None)
    found = getattr(packet, overload_name, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise InputError(f"torch {torch.__version__} has no op {target}")
    if found._schema.is_mutable:
        raise InputError(f"call @{target} changes its arguments", "use the functional form of the op")
    return found


def _call(op: Call, run: Run, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
    def argument(value: object) -> Any:
        return bind(value, operands, run.dtypes, run.sizes)

    target = overload(op.target)
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for declared, given in zip(target._schema.arguments, op.arguments):
        if declared.kwarg_only:
            keywords[declared.name] = run.device if declared.name == "device" else argument(given)
        else:
            positional.append(argument(given))
    try:
        result = target(*positional, **keywords)
    except (TypeError, ValueError) as error:
        raise InputError(f"call @{op.target} does not accept its arguments: {str(error).splitlines()[0]}") from None
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


CALL_KERNELS: Final[Table] = {Call: _call}
