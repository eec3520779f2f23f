"""The decompose pass: nn ops back into the primitives that are their meaning."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

from irlab.ir import Module
from irlab.ops.nn import NNOp
from irlab.passmgr import Context, Pass


@dataclass(frozen=True)
class Decompose(Pass, name="decompose", exactness="close"):
    """Replaces nn ops by their definition in primitives: the inverse of fuse.

    `ops` limits it to ops whose name matches one of the patterns, for example `decompose{ops=nn.gated_mlp,nn.rope}`.
    """

    ops: tuple[str, ...] = ("nn.*",)

    def run(self, module: Module, ctx: Context) -> None:
        graph, hits = module.graph, 0
        # A decomposition may itself use nn ops (gated_mlp uses linear), so look again until none is left.
        while pending := [op for op in graph.topo() if self._wanted(op.opname)]:
            for op in pending:
                assert isinstance(op, NNOp)
                result = op.decompose()
                graph.replace(op, *(result if isinstance(result, tuple) else (result,)), made_by="decompose")
            hits += len(pending)
        ctx.note_rewrites({"decompose": hits})

    def _wanted(self, opname: str) -> bool:
        return opname.startswith("nn.") and any(fnmatch(opname, pattern) for pattern in self.ops)
