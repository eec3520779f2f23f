"""The reference executor: what a graph means, computed by torch, differentiable.

    >>> program = Program(module.graph, cache_bytes=2 << 30)     # prepared once
    >>> program({"input_ids": ids})["logits"]                    # run many times
    >>> evaluate(module, {"input_ids": ids})                     # once

Speed comes second to faithfulness: every kernel is checked against the decomposition of its op.
"""

from __future__ import annotations

from .program import Program, evaluate
from .sizes import Sizes
from .torch_types import to_torch, torch_dtype

__all__ = ["Program", "Sizes", "evaluate", "to_torch", "torch_dtype"]
