"""How does what remains make up for layers that are gone? The last matrix before them takes over, by least squares.

A layer before a gap adds W z to the stream. With the stream h at the end of the gap in the original model, W becomes
the matrix that reaches h best from where the stream is now, so that it adds what the gap's layers added as far as that
is linear in z, and what is off already is corrected. Shopkhoev et al. 2025 (ReplaceMe, arXiv 2505.02819) fit a square
matrix behind W to the same end; fitting W itself includes theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from irlab.activations import Activations
from irlab.calibration import Batch
from irlab.floats import as_f32
from irlab.ir import Graph, Value, Weight
from irlab.ops import nn, prim
from irlab.passes.prune.layer_choice import names, stream_values
from irlab.passes.prune.streams import Stream, drop, streams
from irlab.passmgr import Context
from irlab.walk import Walk, tapped
from irlab.weight_uses import replace_weights, weight_uses
from irlab.weights import Array, WeightSymbol, numpy_dtype, static_shape


def bridge(graph: Graph, dropped: Sequence[int], batches: Sequence[Batch], damping: float, ctx: Context) -> int:
    """Drop the layers of these numbers from `graph`, in place, and fit the matrices before the gaps; gives how many."""
    gaps = _gaps(streams(graph), set(dropped))
    with Activations() as wanted, Activations() as store:
        original = Walk(graph.clone(), batches, ctx.device, wanted)
        for _ in ctx.progress.track(stream_values(original), "running layers", original.batches * len(original.layers)):
            pass
        ends = {stream.number: names(stream)[1] for stream in streams(original.graph)}
        goals = {gap[0].number - 1: ends[gap[-1].number] for gap in gaps}
        drop(graph, [stream for gap in gaps for stream in gap])
        walk = Walk(graph, batches, ctx.device, store)
        fitted = 0
        for index in range(len(walk.layers)):
            layer = walk.layers[index]
            stream = next((s for s in streams(graph) if s.layer.name == layer.name), None)
            goal = goals.get(stream.number) if stream is not None else None
            if stream is not None and goal is not None:
                fitted += _fit(walk, stream, original, goal, damping)
                walk.refresh()
            for _ in walk.advance(walk.layers[index]):
                pass
    return fitted


def _gaps(found: Sequence[Stream], dropped: set[int]) -> list[list[Stream]]:
    """Runs of layers to drop that follow each other."""
    runs = [(gone, list(run)) for gone, run in groupby(found, lambda s: s.number in dropped)]
    return [run for gone, run in runs if gone]


def _fit(walk: Walk, stream: Stream, original: Walk, goal: str, damping: float) -> int:
    """Fit the matrix that writes what `stream` makes, so that the stream becomes `goal` of the original."""
    symbol = writer(stream.made, walk.graph)
    if symbol is None:
        return 0
    piece = tapped(stream.layer)
    tap = next(tap for tap in piece.taps if symbol.name in tap.weights)
    made = names(stream)[1]
    piece.graph.set_outputs({"z": tap.linears[0].x, "h": piece.graph.outputs[made]})
    out, width = static_shape(symbol.type)
    inner, cross = np.zeros((width, width)), np.zeros((out, width))
    for batch, results in enumerate(walk.outputs(stream.layer, piece.graph)):
        z = results["z"].reshape(-1, results["z"].shape[-1]).double().cpu()
        off = original.store.get(goal, batch).double() - results["h"].double().cpu()
        inner += (z.T @ z).numpy()
        cross += (off.reshape(-1, off.shape[-1]).T @ z).numpy()
    inner[np.diag_indices_from(inner)] += damping * float(np.diagonal(inner).mean())
    change = np.linalg.solve(inner, cross.T).T
    values = (as_f32(symbol.recipe.read()) + change).astype(numpy_dtype(symbol.type.dtype))
    replace_weights(walk.graph, {symbol.name: WeightSymbol(symbol.name, Array(symbol.type, values))})
    return 1


def writer(value: Value, graph: Graph) -> WeightSymbol | None:
    """The matrix whose product is added to the stream last, where it is read nowhere else; None if there is none."""
    op = value.op
    if not isinstance(op, prim.Add):
        return None
    for operand in (op.y, op.x):
        source = operand.op
        weight = (
            source.weight if isinstance(source, nn.Linear) else source.down if isinstance(source, nn.GatedMLP) else None
        )
        if weight is not None and isinstance(weight.op, Weight) and weight.type.encoding is None:
            symbol = weight.op.symbol
            if len(weight_uses(graph)[symbol.name].users) == 1:
                return symbol
    return None
