"""The dce pass: what no output depends on is erased."""

from __future__ import annotations

from dataclasses import dataclass

from irlab import Context, Module, Pass
from irlab.ir import Graph


@dataclass(frozen=True)
class DCE(Pass, name="dce"):
    """Erases ops that no output depends on, in regions too; weights that only they used go with them."""

    def run(self, module: Module, ctx: Context) -> None:
        ctx.note_rewrites({"erase-dead": erase_dead(module.graph)})


def erase_dead(graph: Graph) -> int:
    """Erase dead ops of `graph` and of the regions in it; returns how many."""
    count = graph.erase_dead()
    for op in list(graph.region_ops()):
        count += sum(map(erase_dead, op.regions))
    return count
