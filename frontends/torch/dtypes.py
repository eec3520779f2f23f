"""Which torch dtype is which dtype of the IR."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from irlab.errors import InputError
from irlab.types import DTYPES, DType

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {
    "bool": "bool",
    "bf16": "bfloat16",
    "f8e4m3": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2",
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"f{bits}": f"float{bits}" for bits in (16, 32, 64)},
}


@cache
def _by_torch() -> dict[torch.dtype, DType]:
    import torch

    return {getattr(torch, name): DTYPES[ours] for ours, name in _TORCH_NAMES.items()}


def from_torch(dtype: torch.dtype) -> DType:
    """The IR's dtype; raises InputError for complex and quantised ones, which the IR does not have."""
    found = _by_torch().get(dtype)
    if found is None:
        raise InputError(f"tensors of {dtype} are not supported")
    return found


def to_torch(dtype: DType) -> torch.dtype:
    """torch's dtype for `dtype`."""
    import torch

    found = getattr(torch, _TORCH_NAMES[dtype.name])
    assert isinstance(found, torch.dtype)
    return found
