"""In which numbers does a module compute?"""

from __future__ import annotations

from .ir import Module
from .types import DType, bf16, f16, f32


def compute_dtype(module: Module) -> DType:
    """The widest dtype that the module's values have among f32, f16 and bf16."""
    found = {value.type.dtype for op in module.graph.ops() for value in op.results if value.type.encoding is None}
    found |= {value.type.dtype for value in module.graph.inputs}
    return next((dtype for dtype in (bf16, f16, f32) if dtype in found), f32)
