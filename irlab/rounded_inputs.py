"""What does half precision alone change of what a model says? It is run with what matrices read rounded to their dtype.

A runtime that multiplies matrices in half precision rounds what they read (llama.cpp does), the interpreter does not.
How far that carries is a matter of the model: one whose layers were taken out or tied may say by half a tenth another
logit where another one hardly moves. So a difference of logits says something beside that which rounding makes.
"""

from __future__ import annotations

from collections.abc import Sequence

from .encodings.ggml.encoding import FloatEncoding
from .ir import Module, Weight
from .ops import nn, prim
from .ops.nn import NNOp
from .types import DTYPES, DType, TensorType, bf16, f16


def with_rounded_inputs(module: Module) -> Module | None:
    """A copy of `module` in which what matrices stored in half precision read is rounded to it; None where there are no
    such matrices, or they read it anyway."""
    made = module.clone()
    graph = made.graph
    for op in graph.ops():
        if isinstance(op, NNOp) and op.matrices and not isinstance(op, nn.Linear):
            values = op.decompose()
            graph.replace(op, *(values if isinstance(values, tuple) else (values,)))
    count = 0
    for op in graph.find(nn.Linear):
        half = _half(op.weight.type)
        if isinstance(op.weight.op, Weight) and half is not None and _half(op.x.type) is None:
            x = prim.cast(prim.cast(op.x, half), op.x.type.dtype)
            graph.replace(op, nn.linear(x, op.weight, op.bias))
            count += 1
    return made if count else None


def rounding_error(module: Module, prompts: Sequence[Sequence[int]], device: str = "cpu") -> float:
    """The largest logit difference that rounded inputs make on `prompts`; 0 where nothing is rounded."""
    import numpy as np

    from .decoder import logits

    rounded = with_rounded_inputs(module)
    if rounded is None:
        return 0.0
    pairs = ((logits(m, prompt, device=device) for m in (module, rounded)) for prompt in prompts)
    return max(float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) for a, b in pairs)


def _half(kind: TensorType) -> DType | None:
    """The half precision that numbers of this type are stored in."""
    encoding = kind.encoding
    if encoding is not None and not isinstance(encoding, FloatEncoding):
        return None
    stored = kind.dtype if encoding is None else DTYPES[encoding.type_name]
    return stored if stored in (f16, bf16) else None
