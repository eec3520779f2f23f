"""How does the residual stream get narrower? By leaving out directions in which it hardly moves, or single features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from irlab.activations import Activations
from irlab.axes import Axis, AxisAnalysis, keep
from irlab.errors import InputError
from irlab.ir import Graph, Module, Op, Value, Weight
from irlab.ops import nn
from irlab.passes.prune.base import PruneUnits
from irlab.passes.prune.cuts import Cut
from irlab.passes.prune.elimination import Doubles
from irlab.passes.quantize.selection import before_encoding
from irlab.passes.rotate.folds import Folds, Projection
from irlab.passes.rotate.stream import Residual, ops_by_axis
from irlab.passmgr import Context
from irlab.types import f32, tensor
from irlab.walk import Walk, require_finite
from irlab.weight_uses import replace_weights
from irlab.weights import Affine, Array, Random, Recipe, WeightSymbol


@dataclass(frozen=True)
class PruneHidden(
    PruneUnits,
    name="prune-hidden",
    exactness="lossy",
    requires={"fuse": "it looks for norms, linears and attention"},
    before={
        **before_encoding("codes would be cut"),
        "sparsify": "zeros do not stay where they are",
        "dynamic-sparsity": "thresholds are those of single features",
        "tie-layers": "each layer's norm goes into its matrices, which must be its own for that",
        "kv-cache": "calibration runs whole texts",
    },
):
    """Makes the residual stream narrower: the directions in which it hardly moves go, from all weights at once.

        nn.embedding(%ids, @embed[49152, 576]) ... nn.rms_norm(.., @norm[576]) ... nn.linear(.., @q[576, 576])
        ->   nn.embedding(%ids, @embed[49152, 448]) ... nn.rms_norm(.., @norm[448]) ... nn.linear(.., @q[576, 448])

    `method`: pca turns the stream to its principal components on calibration data and leaves out the last (Ashkboos et
    al. 2024, SliceGPT). One rotation serves all layers, so that nothing is added between them and every target holds
    the result; it costs more than a rotation for each block. Refused, naming the op, where something acts on single
    features, such as a norm that subtracts the mean. select leaves out the features with the smallest weights, which
    any model allows; little of a model survives that without training.

    `ratio`: the share of features that goes; or `size`: the bytes that all weights may take; or `speedup`: by how much
    fewer bytes are to be read. `multiple`: the width that is left is a multiple of it; by default of the blocks of the
    targets' formats where the width allows it.
    """

    method: Literal["pca", "select"] = "pca"

    role: ClassVar[str] = "features"
    prefers_blocks: ClassVar[bool] = True

    def computes(self, ctx: Context) -> bool:
        return self.method == "pca"

    def prepare(self, module: Module, ctx: Context) -> None:
        if self.method == "select" or ctx.is_plan:
            super().prepare(module, ctx)
            return
        axes = AxisAnalysis(module.graph)
        found = self._cuts(axes)
        left = self._allocate(module, axes, found, ctx)
        for name in [cut.name for cut in found]:
            # Weights may have been untied, and are others now.
            axes = AxisAnalysis(module.graph)
            cut = next(cut for cut in self._cuts(axes) if cut.name == name)
            if left[name] < cut.group.size:
                self._slice(module, axes, cut, left[name], ctx)

    def _slice(self, module: Module, axes: AxisAnalysis, cut: Cut, width: int, ctx: Context) -> None:
        graph, leaf, size = module.graph, cut.group.leaf, cut.group.size
        ops = ops_by_axis(graph, axes, [leaf])[leaf]
        kind = tensor(f32, (size, size))
        # Refused before anything is measured.
        _folds(axes, leaf, ops, Random(kind))
        basis = principal_components(stream_covariance(graph, axes, leaf, size, ctx))
        folds = _folds(axes, leaf, ops, Array(kind, np.ascontiguousarray(basis, np.float32)))
        norms = [op for op, _ in _norms(graph, axes, leaf)]
        folds.apply(graph, untie=True)
        gains = [_gain(op) for op in norms]
        turned = AxisAnalysis(graph)
        group = turned.group_of(turned.of(norms[0].x)[-1])
        assert group is not None
        keep(graph, {group.name: range(width)}, turned)
        # The mean of squares is over fewer features, which have nearly all of the energy.
        weights, scale = graph.weights(), math.sqrt(size / width)
        replace_weights(graph, {n: WeightSymbol(n, Affine(weights[n].recipe, scale)) for n in gains})
        ctx.note_rewrites({"prune": size - width})


def _folds(axes: AxisAnalysis, leaf: Axis, ops: Sequence[Op], basis: Recipe) -> Folds:
    """What turns the features `leaf` by `basis`. Raises InputError, naming an op that acts on single features."""
    folds = Folds()
    try:
        Residual(axes, leaf, folds, lambda axis: Projection(axis, basis)).follow(ops)
    except InputError as error:
        message = error.message.replace("rotate: ", "prune-hidden: ", 1)
        raise InputError(message, error.hint or "method=select leaves out single features") from None
    return folds


def _gain(op: nn.RMSNorm | nn.AddRMSNorm) -> str:
    """The name of the gain of a norm."""
    if op.weight is None or not isinstance(op.weight.op, Weight):
        raise InputError(f"prune-hidden: the norm at {op.loc.path if op.loc else '?'} has no gain, which must change")
    return op.weight.op.symbol.name


def _norms(graph: Graph, axes: AxisAnalysis, leaf: Axis) -> list[tuple[nn.RMSNorm | nn.AddRMSNorm, Value]]:
    """The norms over the features `leaf`, each with what it normalises."""
    found: list[tuple[nn.RMSNorm | nn.AddRMSNorm, Value]] = [
        (op, op.x) for op in graph.find(nn.RMSNorm) if axes.of(op.x)[-1] is leaf
    ]
    return found + [(op, op.results[0]) for op in graph.find(nn.AddRMSNorm) if axes.of(op.x)[-1] is leaf]


def stream_covariance(graph: Graph, axes: AxisAnalysis, leaf: Axis, size: int, ctx: Context) -> Doubles:
    """E[x x^T] over everything that norms over the features `leaf` normalise, each row of length 1: f64[size, size]."""
    module = ctx.manager.module
    assert module is not None
    norms = _norms(graph, axes, leaf)
    if not norms:
        raise InputError("prune-hidden: no nn.rms_norm goes over the features", "method=select, or run fuse first")
    seen = {value for _, value in norms}
    total, count = np.zeros((size, size)), 0
    with Activations() as store:
        walk = Walk(graph, ctx.calibration_batches(module), ctx.device, store)

        def work() -> Iterator[None]:
            nonlocal total, count
            for layer in walk.layers:
                inside = {v: f"x{i}" for i, v in enumerate(seen) if v.op in set(layer.ops)}
                if inside:
                    for results in walk.outputs(layer, layer.graph({name: value for value, name in inside.items()})):
                        for x in results.values():
                            require_finite(x, f"the residual stream in {layer.name}")
                            rows = x.reshape(-1, size).float()
                            rows = torch.nn.functional.normalize(rows, dim=-1)
                            total += (rows.T @ rows).double().cpu().numpy()
                            count += len(rows)
                        yield
                yield from walk.advance(layer)

        for _ in ctx.progress.track(work(), "collecting the residual stream", 2 * walk.batches * len(walk.layers)):
            pass
    return np.asarray(total / max(1, count))


def principal_components(covariance: Doubles) -> Doubles:
    """The eigenvectors of a covariance as columns, those of the largest eigenvalues first."""
    _, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors[:, ::-1])
