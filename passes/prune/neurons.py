"""Which neurons of feed-forward blocks can go?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from irlab.passes.prune.measured import MeasuredUnits
from irlab.passes.quantize.selection import before_encoding


@dataclass(frozen=True)
class PruneNeurons(
    MeasuredUnits,
    name="prune-neurons",
    exactness="lossy",
    requires={"fuse": "it looks at what matrices of nn ops read"},
    before={
        **before_encoding("codes would be cut"),
        "sparsify": "the refit fills what was zero",
    },
    per_layer=("ratio",),
):
    """Leaves out neurons of feed-forward blocks, and lets those that stay make up for them.

        nn.gated_mlp(%x, @gate[1536, 576], @up[1536, 576], @down[576, 1536])
        ->   nn.gated_mlp(%x, @gate[1152, 576], @up[1152, 576], @down[576, 1152])

    A neuron is an index that a product makes, a nonlinearity changes and another product sums over, wherever in a graph
    that is found (`--explain` shows it). Layer by layer, each seeing what the ones before it have become.

    `ratio`: the share of neurons that goes; or `size`: the bytes that all weights may take; or `speedup`: by how much
    fewer bytes are to be read. `allocate`: uniform, the same share everywhere, or global, where it costs the loss least
    (by gradients). `multiple`: widths that are left are multiples of it; by default of the blocks of the targets'
    formats, 256 or 32, where the width allows it. `score` (none: obs with refit,
    activation without): obs leaves out what the others can best make up for (Hassibi & Stork 1992); activation is
    |W_j|^2 E[x_j^2] (An et al. 2023, FLAP), taylor weights its rows by squared gradients of the loss (Molchanov et al.
    2019), magnitude needs no data. `refit`: the matrix after the neurons is fitted to its
    old output by least squares (Lin et al. 2024, MoDeGPT); `damping` is added to the diagonal of the Hessian, relative
    to its mean.
    """

    role: ClassVar[str] = "neurons"
    prefers_blocks: ClassVar[bool] = True
