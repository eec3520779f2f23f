"""Which numbers does TensorRT compute with, and what are they called on each side?"""

from __future__ import annotations

from typing import Any, Final

from irlab.backends.tensorrt.library import load
from irlab.types import DType, bf16, bool_, f16, f32, i32, i64

NAMES: Final[dict[DType, str]] = {
    f32: "float32", f16: "float16", bf16: "bfloat16", i32: "int32", i64: "int64", bool_: "bool",
}  # fmt: skip
"""The dtypes of values, by their name in TensorRT's module. Its other types (int8, int4, fp8 ...) are of weights."""


def trt_type(dtype: DType) -> Any:
    """The tensorrt.DataType of a dtype of the IR."""
    return getattr(load(), NAMES[dtype])


def ir_type(data_type: Any) -> DType | None:
    """The dtype of the IR that a tensorrt.DataType is, or None for one that only weights have."""
    library = load()
    return next((dtype for dtype, name in NAMES.items() if getattr(library, name) == data_type), None)
