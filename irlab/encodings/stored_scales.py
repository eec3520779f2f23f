"""How are the scales of groups stored? As floats, or as integers under a scale of their row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import ml_dtypes
import numpy as np

from ..errors import InputError
from ..types import DType, TensorType, bf16, f16, f32, i8, tensor
from .base import AnyArray, Floats

SCALES: Final[dict[DType, np.dtype[Any]]] = {
    f16: np.dtype(np.float16),
    bf16: np.dtype(ml_dtypes.bfloat16),
    f32: np.dtype(np.float32),
    i8: np.dtype(np.int8),
}
"""How scales can be stored. i8 is double quantisation, as QLoRA's (arXiv 2305.14314), along rows: a scale is an integer
times an f32 of its row, part "row_scales"[..., 1]."""

TENSOR: Final = -1
"""The `group` of one scale for a whole tensor. It is stored with each row, so that rows can be taken and joined."""

_LEAST_UNIT: Final = np.float32(2.0**-126)
"""The least normal number: its inverse is finite."""


def store(scales: Floats, dtype: DType) -> dict[str, AnyArray]:
    """The parts "scales" (and "row_scales") of f32[rows, groups]. Raises InputError where `dtype` cannot hold them."""
    if dtype is i8:
        unit = np.maximum(np.abs(scales).max(1, keepdims=True) / np.float32(127), _LEAST_UNIT)
        return {"scales": np.rint(scales / unit).astype(np.int8), "row_scales": unit}
    with np.errstate(over="ignore"):
        stored = scales.astype(SCALES[dtype])
    if not np.isfinite(stored).all():
        raise InputError(f"a scale of {float(np.abs(scales).max()):.3g} does not fit {SCALES[dtype]}")
    return {"scales": stored}


def load(parts: Mapping[str, AnyArray]) -> Floats:
    """The scales f32[..., groups] behind the parts, as a new array."""
    scales = parts["scales"].astype(np.float32)
    if "row_scales" in parts:
        scales *= parts["row_scales"]
    return scales


def stored_types(dtype: DType, lead: tuple[int, ...], groups: int) -> dict[str, TensorType]:
    """The types of the parts for rows [*lead, ...] of `groups` groups."""
    types = {"scales": tensor(dtype, (*lead, groups))}
    return types | ({"row_scales": tensor(f32, (*lead, 1))} if dtype is i8 else {})


def bits_per_row(dtype: DType, groups: int) -> int:
    """What the scales of a row take."""
    return dtype.bits * groups + (32 if dtype is i8 else 0)


def check(dtype: DType, group: int) -> None:
    """Raise InputError for scales that cannot be stored so, or a group that makes no sense."""
    if group < TENSOR:
        raise InputError(
            f"a group of {group} columns makes no sense", "0 is one group for each row, -1 one for the tensor"
        )
    if dtype not in SCALES:
        raise InputError(f"scales cannot be {dtype}", f"one of {', '.join(map(str, SCALES))}")
    if dtype is i8 and group <= 0:
        raise InputError("a single scale of a row cannot be stored as i8", "choose a group, or scale=f16")


def check_finite(parts: Mapping[str, AnyArray], encoding: object) -> None:
    """Raise InputError if a stored scale is not finite."""
    if not all(np.isfinite(parts[part]).all() for part in ("scales", "row_scales") if part in parts):
        raise InputError(f"a stored scale of {encoding} is not finite")


def check_groups(shape: tuple[int, ...], group: int, encoding: object) -> None:
    """Raise InputError if rows of a tensor of `shape` are not whole groups."""
    if len(shape) < 2:
        raise InputError(f"a tensor of shape {list(shape)} has no rows to encode as {encoding}")
    if not shape[-1] or (group > 0 and shape[-1] % group):
        raise InputError(f"rows of {shape[-1]} numbers are not whole groups of {group}")


def group_text(group: int) -> str:
    """`group=N`, as `parse_group` reads it."""
    return f"group={'tensor' if group == TENSOR else group}"


def parse_group(argument: str) -> int:
    """The group behind `group=N` or `group=tensor`; raises ValueError."""
    name, _, number = argument.partition("=")
    if name != "group" or not (number.isdecimal() or number == "tensor"):
        raise ValueError(f"'{argument}' is not group=N")
    return TENSOR if number == "tensor" else int(number)


def parse_scale(argument: str) -> DType:
    """The dtype behind `scale=DTYPE`; raises ValueError."""
    scales = {f"scale={dtype}": dtype for dtype in SCALES}
    if argument not in scales:
        raise ValueError(f"'{argument}' is not one of {', '.join(scales)}")
    return scales[argument]
