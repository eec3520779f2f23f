"""Does the residual stream go through a matrix? No architecture of llama.cpp or transformers has one there."""

from __future__ import annotations

from typing import Final

from .errors import LegalityError
from .ir import Graph
from .ops import nn, prim

WAY_OUT: Final = "prune-hidden{rotation=global} adds none; onnx and tensorrt hold it"


def require_no_shortcuts(graph: Graph, target: str) -> None:
    """Raise LegalityError, naming the op, if a matrix reads the residual stream as it is, and is added to it again."""
    for op in graph.find(nn.Linear):
        if isinstance(op.x.op, prim.Add) and any(isinstance(user, prim.Add) for user in op.result.uses):
            where = op.loc.path if op.loc is not None and op.loc.path else "the graph"
            raise LegalityError(
                f"{target}: {op.opname} in {where} is a matrix on the residual connection",
                WAY_OUT,
            )
