"""The strip-unused pass: what nobody asks for is taken out of the graph and of its interface."""

from __future__ import annotations

from dataclasses import dataclass

from irlab.errors import InputError
from irlab.ir import Graph, Module
from irlab.passmgr import Context, Pass
from irlab.weight_uses import graphs


@dataclass(frozen=True)
class StripUnused(Pass, name="strip-unused"):
    """Drops outputs that are not wanted, dead ops, weights that only they read, and inputs that nothing reads.

        graph(%x: f32[4], %y: f32[4]) {
          %0 = prim.neg(%x) : f32[4]             graph(%x: f32[4]) {
          %1 = prim.exp(%0) : f32[4]        ->     %0 = prim.neg(%x) : f32[4]
          return a=%0, b=%1                        return a=%0
        }                                        }

    as strip-unused{outputs=a}. `outputs`: the names of those to keep; all without it. `inputs=false` keeps inputs that
    nothing reads, for callers that give them.
    """

    outputs: tuple[str, ...] = ()
    inputs: bool = True

    def run(self, module: Module, ctx: Context) -> None:
        graph = module.graph
        dropped = self._drop_outputs(graph) if self.outputs else 0
        # Dropping outputs has already erased what only they needed; what is left was dead before.
        dead = sum(each.erase_dead() for each in graphs(graph))
        unread = [value for value in graph.inputs if not value.uses] if self.inputs else []
        graph.inputs = [value for value in graph.inputs if value not in unread]
        ctx.note_rewrites({"drop-output": dropped, "erase-dead": dead, "drop-input": len(unread)})

    def _drop_outputs(self, graph: Graph) -> int:
        before = graph.outputs
        missing = [name for name in self.outputs if name not in before]
        if missing:
            raise InputError(f"strip-unused: there is no output '{missing[0]}'", f"outputs: {', '.join(before)}")
        kept = {name: value for name, value in before.items() if name in self.outputs}
        if len(kept) < len(before):
            graph.set_outputs(kept)
        return len(before) - len(kept)
