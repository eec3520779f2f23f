"""The rotate pass: the residual stream, and the values of heads, are turned by random orthogonal matrices."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Literal

from irlab.axes import Axis, AxisAnalysis, leaves
from irlab.errors import InputError
from irlab.ir import Graph, Module
from irlab.ops import nn
from irlab.orthogonal import has_hadamard
from irlab.passes.quantize.selection import before_encoding
from irlab.passes.rotate.folds import Folds, Turn
from irlab.passes.rotate.stream import Residual, ops_by_axis, turn_values
from irlab.passmgr import Context, Pass

_CODES = "codes are those of the weights as they lie, and a rotated matrix is another one"


@dataclass(frozen=True)
class Rotate(
    Pass,
    name="rotate",
    exactness="close",
    requires={"fuse": "it looks for norms, linears and attention"},
    before={
        **before_encoding(_CODES),
        "dynamic-sparsity": "thresholds are those of single features",
        "tie-layers": "each layer's norm goes into its matrices, which must be its own for that",
        "sparsify": "zeros do not stay where they are",
        "kv-cache": "the values of heads are rotated, and the cache is an input",
    },
):
    """Rotates hidden features by a random Hadamard matrix that is folded into the weights: no channel stands out.

        %h = nn.embedding(%ids, @embed)              @embed = rotate(file(...), 1, 512)
        %n = nn.rms_norm(%h, @norm)             ->   @norm  = ones
        %q = nn.linear(%n, @q)                       @q     = rotate(scale(file(...), norm), 1, 512)
        %o = nn.linear(%a, @o) + %h                  @o     = rotate(file(...), 0, 512)

    The graph computes what it did, with no op more (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456; SpinQuant, Liu et
    al. 2024): a rotation of all features passes through norms without gains, so gains are folded into the matrices
    behind them first. Low-bit `quantize` loses less afterwards, because outlying channels are spread over all. Found by
    the axes of the graph; refused, naming the op, where something acts on single features: a norm that subtracts the
    mean, a norm whose result goes to the residual stream, an output of hidden states.

    `kind`: hadamard needs an order that a construction is known for (2^n times 1, 12, 20, 28, 36 ...); orthogonal, a
    uniformly random matrix, takes any. The signs, or the matrix, come from --seed.
    `heads`: rotate the values of heads too, between v and o.
    `tied`: a head that shares the embedding table needs the gain of the last norm, which the table has not: untie
    stores the head as a weight of its own, refuse leaves the model alone.
    """

    kind: Literal["hadamard", "orthogonal"] = "hadamard"
    heads: bool = True
    tied: Literal["untie", "refuse"] = "untie"

    def run(self, module: Module, ctx: Context) -> None:
        graph, folds, counts = module.graph, Folds(), Counter[str]()
        axes = AxisAnalysis(graph)
        streams = _streams(graph, axes)
        values = _values(graph, axes) if self.heads else []
        ops = ops_by_axis(graph, axes, [*streams, *values])
        for leaf in values:
            possible = not leaf.fixed and self._fits(leaf)
            turned = possible and turn_values(ops[leaf], axes, leaf, folds, partial(self._turn, leaf, ctx.seed))
            counts["rotate-heads" if turned else "keep-heads"] += 1
        for leaf in streams:
            if not self._fits(leaf):
                raise InputError(f"rotate: no Hadamard matrix of order {leaf.size} is known here", "kind=orthogonal")
            Residual(axes, leaf, folds, partial(self._turn, leaf, ctx.seed)).follow(ops[leaf])
            counts["rotate-stream"] += 1
        counts["untie"] = len(folds.apply(graph, untie=self.tied == "untie"))
        ctx.note_rewrites(counts)

    def _fits(self, leaf: Axis) -> bool:
        return self.kind == "orthogonal" or has_hadamard(_size(leaf))

    def _turn(self, leaf: Axis, seed: int, axis: int) -> Turn:
        return Turn(axis, _size(leaf), self.kind, seed)


def _size(leaf: Axis) -> int:
    assert isinstance(leaf.size, int)
    return leaf.size


def _streams(graph: Graph, axes: AxisAnalysis) -> list[Axis]:
    """The features that embedding tables give. Raises InputError where there are none, or they must stay."""
    found: dict[Axis, None] = {}
    for op in graph.find(nn.Embedding):
        axis = axes.of(op.result)[-1]
        if leaves(axis) != [axis] or not isinstance(axis.size, int):
            raise InputError("rotate: the features of the embedding table are cut into pieces", "they cannot be mixed")
        found[axis] = None
    if not found:
        raise InputError("rotate: the graph embeds no ids, so no residual stream was found")
    for axis in found:
        if axis.fixed:
            raise InputError(f"rotate: the features cannot be mixed: {next(iter(axis.fixed))}")
    return list(found)


def _values(graph: Graph, axes: AxisAnalysis) -> list[Axis]:
    """The features of the values of each attention, where they are one axis."""
    found = [axes.of(op.v)[3] for op in graph.find(nn.Attention)]
    return list(dict.fromkeys(axis for axis in found if leaves(axis) == [axis] and isinstance(axis.size, int)))
