"""In which directions does the residual stream move most? Eigenvectors of second moments, found layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from irlab.activations import Activations
from irlab.ir import Graph, Value
from irlab.layers import Layer
from irlab.passes.prune.elimination import Doubles
from irlab.passmgr import Context
from irlab.walk import Walk, require_finite

Moment = Callable[[Value, Doubles, int], None]
"""Is told of a value: the sum of x x^T over its rows x, and how many rows there were."""


def second_moments(graph: Graph, values: Mapping[Value, bool], take: Moment, ctx: Context) -> None:
    """Run the calibration data through `graph`, and hand the second moment of each of `values` (whether their rows are
    centred first), rows normalised to length 1, to `take`; one after the other, layer by layer."""
    module = ctx.manager.module
    assert module is not None
    with Activations() as store:
        walk = Walk(graph, ctx.calibration_batches(module), ctx.device, store)

        def work() -> Iterator[None]:
            for layer in walk.layers:
                inside = set(layer.ops)
                yield from _moments(walk, layer, {v: c for v, c in values.items() if v.op in inside}, take)
                yield from walk.advance(layer)

        for _ in ctx.progress.track(work(), "collecting the residual stream", 2 * walk.batches * len(walk.layers)):
            pass


def _moments(walk: Walk, layer: Layer, values: Mapping[Value, bool], take: Moment) -> Iterator[None]:
    if not values:
        return
    names = {f"x{i}": value for i, value in enumerate(values)}
    totals: dict[str, Doubles] = {}
    counts = dict.fromkeys(names, 0)
    for results in walk.outputs(layer, layer.graph(names)):
        for name, x in results.items():
            require_finite(x, f"the residual stream in {layer.name}")
            rows = x.reshape(-1, x.shape[-1]).float()
            if values[names[name]]:
                rows = rows - rows.mean(-1, keepdim=True)
            rows = torch.nn.functional.normalize(rows, dim=-1)
            totals[name] = totals.get(name, 0) + (rows.T @ rows).double().cpu().numpy()
            counts[name] += len(rows)
        yield
    for name, value in names.items():
        take(value, totals[name], counts[name])


def principal_components(moment: Doubles) -> Doubles:
    """The eigenvectors of a second moment as columns, those of the largest eigenvalues first."""
    _, vectors = np.linalg.eigh(moment)
    return np.asarray(vectors[:, ::-1])
