"""Which attention heads can go?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from irlab.axes import AxisAnalysis, describe_groups
from irlab.ir import Module
from irlab.passes.prune.cuts import Cut, cuts
from irlab.passes.prune.measured import MeasuredUnits
from irlab.passes.quantize.selection import before_encoding


@dataclass(frozen=True)
class PruneHeads(
    MeasuredUnits,
    name="prune-heads",
    exactness="lossy",
    requires={"fuse": "it looks at what matrices of nn ops read"},
    before={
        **before_encoding("codes would be cut"),
        "sparsify": "the refit fills what was zero",
        "kv-cache": "the cache would keep the heads that go",
    },
    per_layer=("ratio",),
):
    """Leaves out attention heads, and lets those that stay make up for them.

        nn.attention(%q[.., 9, .., 64], %k[.., 3, .., 64], %v)   ->   nn.attention(%q[.., 6, ..], %k[.., 2, ..], %v)

    `unit`: kv leaves out kv heads, each with the query heads that read it (where every query head has its own: heads);
    query leaves out query heads, the same number for each kv head, which may be different ones. The output projection
    is fitted to its old output by least squares (`refit`).

    `ratio`: the share of units that goes, rounded to whole ones; or `size`: the bytes that all weights may take; or
    `speedup`: by how much fewer bytes are to be read. `allocate`: uniform, the same share everywhere, or global,
    where it costs the loss least. `multiple`: numbers of heads that are left are multiples of it. `score`, `refit`,
    `damping`: as those of prune-neurons, for the block of columns that belongs to a head.
    """

    unit: Literal["kv", "query"] = "kv"

    role: ClassVar[str] = "kv heads"

    def _cuts(self, axes: AxisAnalysis) -> list[Cut]:
        if self.unit == "query":
            return cuts(axes, "query heads", self.name, within="kv heads")
        return cuts(axes, "kv heads", self.name)

    def explain(self, module: Module) -> str:
        return describe_groups(AxisAnalysis(module.graph), ["kv heads", "query heads"])
