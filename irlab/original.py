"""What would the model have computed before a sweep changed it? It is run beside the changed one, layer by layer.

A matrix that is fitted to what the original one made of the original inputs makes up for the errors of the layers
before it, as far as it can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from .activations import Activations
from .calibration import Batch
from .ir import Graph
from .walk import Tap, Walk, require_finite, tapped


class Original:
    """A copy of a graph on its way through the same batches; what flows between layers waits in `store`."""

    def __init__(self, graph: Graph, batches: Sequence[Batch], device: str, store: Activations) -> None:
        self.walk = Walk(graph.clone(), batches, device, store)
        self._taps: dict[tuple[str, int], str] = {}

    def enter(self, index: int) -> Iterator[None]:
        """Run layer `index`, and keep what its matrices read until `leave`; a step for each batch."""
        layer = self.walk.layers[index]
        piece = tapped(layer)
        ends = {name: value for name, value in piece.graph.outputs.items() if name in layer.gives}
        piece.graph.set_outputs(ends | {tap.name: tap.linears[0].x for tap in piece.taps})
        self._taps = dict(zip(tap_keys(piece.taps), (tap.name for tap in piece.taps)))
        for batch, results in enumerate(self.walk.outputs(layer, piece.graph)):
            for name, tensor in results.items():
                require_finite(tensor, f"what {layer.name} computes")
                self.walk.store.put(name, batch, tensor)
            yield

    def rows(self, key: tuple[str, int], batch: int) -> torch.Tensor:
        """What the matrices of the tap `key` read: f32[rows, in]."""
        x = self.walk.inputs([self._taps[key]], batch)[self._taps[key]]
        return x.reshape(-1, x.shape[-1]).float()

    def leave(self, index: int) -> None:
        """Forget what only layer `index` reads."""
        for name in self._taps.values():
            self.walk.store.drop(name)
        self._taps.clear()
        self.walk.forget(self.walk.layers[index])

    def skip(self, index: int) -> Iterator[None]:
        """Run layer `index` without keeping what its matrices read."""
        yield from self.walk.advance(self.walk.layers[index])


def tap_keys(taps: Sequence[Tap]) -> Iterator[tuple[str, int]]:
    """Names of taps that stay while a layer is changed: a matrix, and how many of its taps come before."""
    seen: Counter[str] = Counter()
    for tap in taps:
        yield tap.weights[0], seen[tap.weights[0]]
        seen[tap.weights[0]] += 1
