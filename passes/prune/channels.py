"""Which channels of convolutions can go?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from irlab.passes.prune.base import PruneUnits
from irlab.passes.quantize.selection import before_encoding


@dataclass(frozen=True)
class PruneChannels(
    PruneUnits,
    name="prune-channels",
    exactness="lossy",
    before=before_encoding("codes would be cut"),
    per_layer=("ratio",),
):
    """Leaves out the channels of convolutions that are smallest, with all that belongs to them.

        prim.conv(%x, @a[16, 3, 3, 3]), batch norm [16], prim.conv(.., @b[32, 16, 3, 3])
        ->   prim.conv(%x, @a[12, 3, 3, 3]), batch norm [12], prim.conv(.., @b[32, 12, 3, 3])

    A channel goes from every convolution, norm, residual and matrix that has it (`--explain` shows which); a residual
    stream of several blocks is one group. The magnitude of a channel is the sum of the squares of all its weights, each
    tensor's relative to its mean (Li et al. 2017, over the whole group as Fang et al. 2023, DepGraph). Nothing makes up
    for what goes: train afterwards.

    `ratio`: the share of channels that goes; or `size`: the bytes that all weights may take; or `speedup`: by how much
    fewer bytes are to be read. `multiple`: numbers of channels that are left are multiples of it.
    """

    role: ClassVar[str] = "channels"
