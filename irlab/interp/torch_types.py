"""Dtypes and arrays of the IR as torch has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch

from ..errors import InputError
from ..types import DTYPES, DType, Kind, TensorType, bf16, f16

if TYPE_CHECKING:
    import numpy as np

_NAMES: Final = {"bool": "bool", "bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2"}
_STEMS: Final = {"f": "float", "i": "int", "u": "uint"}
_TORCH: Final[dict[DType, torch.dtype]] = {
    dtype: getattr(torch, _NAMES.get(name) or _STEMS[name[0]] + name[1:]) for name, dtype in DTYPES.items()
}

_AS_BITS: Final[dict[str, tuple[str, torch.dtype]]] = {
    "bfloat16": ("int16", torch.bfloat16),
    "float8_e4m3fn": ("uint8", torch.float8_e4m3fn),
    "float8_e5m2": ("uint8", torch.float8_e5m2),
}
"""NumPy has these only through ml_dtypes, which torch does not know: they cross as bits."""

_RANK_OF_KIND: Final = {Kind.BOOL: 0, Kind.INT: 1, Kind.FLOAT: 2}


def torch_dtype(dtype: DType) -> torch.dtype:
    """The torch dtype of the same name and bits."""
    return _TORCH[dtype]


def widened_dtype(dtype: DType) -> torch.dtype:
    """As `torch_dtype`, but f32 for bf16 and f16: what is computed is not rounded to them."""
    return torch.float32 if dtype in (bf16, f16) else _TORCH[dtype]


Dtypes: TypeAlias = Callable[[DType], torch.dtype]
"""In what a program computes: `torch_dtype`, or `widened_dtype`."""


def to_torch(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor of the same dtype; shares memory where the array may be written."""
    bits = _AS_BITS.get(array.dtype.name)
    if bits is not None:
        array = array.view(bits[0])
    tensor = torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy(order="C"))
    return tensor if bits is None else tensor.view(bits[1])


def as_input(value: Any, type: TensorType, name: str, device: str, dtypes: Dtypes = torch_dtype) -> torch.Tensor:
    """`value` (a tensor, array or nested list) as an input of `type`; its shape is checked elsewhere.

    Bool widens to integers and integers to floats; anything that would lose numbers is refused.
    """
    import numpy as np

    try:
        tensor = to_torch(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"input '{name}' is no tensor: {str(error).splitlines()[0]}") from None
    wanted = dtypes(type.dtype)
    if tensor.dtype is not wanted:
        have = 2 if tensor.is_floating_point() else 0 if tensor.dtype is torch.bool else 1
        if tensor.is_complex() or have > _RANK_OF_KIND[type.dtype.kind]:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"input '{name}' holds {kind} where {type} is expected")
        tensor = tensor.to(wanted)
    return tensor.to(device)
