"""How is a graph run so that gradients flow through it? Layer by layer, each of which can be computed again on the way
back instead of keeping all that happened in it (activation checkpointing, Chen et al. 2016, arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.utils.checkpoint import checkpoint

from irlab.activations import Activations
from irlab.calibration import Batch
from irlab.interp import Program
from irlab.ir import Graph, Value
from irlab.layers import Layer
from irlab.walk import WEIGHT_BYTES, Walk

Tensors = dict[str, torch.Tensor]


class Stack:
    """`graph`, ready to run on `batches`, with `weights` in place of its own by name.

    With `recompute` a layer keeps only what flows in and out of it. `outputs` are the graph's outputs that are
    computed: logits where there are any, else all that are floats.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[Batch],
        device: str,
        store: Activations,
        weights: Mapping[str, torch.Tensor] | None = None,
        recompute: bool = False,
    ) -> None:
        self._walk = Walk(graph, batches, device, store)
        self._recompute = recompute
        self.outputs = _predictions(graph)
        self._pieces: list[tuple[Layer, Program]] = []
        for layer in self._walk.layers:
            wanted = {**layer.gives, **{n: v for n, v in layer.outputs.items() if n in self.outputs}}
            if wanted:
                program = Program(layer.graph(wanted), device=device, weights=weights, cache_bytes=WEIGHT_BYTES)
                self._pieces.append((layer, program))

    @property
    def hidden(self) -> dict[str, dict[str, Value]]:
        """The floats that flow out of each numbered layer, by name of the layer and of the value."""
        numbered = (layer for layer, _ in self._pieces if layer.name not in ("before", "all", "after"))
        return {
            layer.name: {name: value for name, value in layer.gives.items() if value.type.dtype.is_float}
            for layer in numbered
        }

    def __call__(self, batch: int) -> Tensors:
        """What each layer gives, and the outputs, for one batch, by name."""
        values: Tensors = {}
        for layer, program in self._pieces:
            reads = {name: values[name] if name in values else self._input(name, batch) for name in layer.reads}
            values |= self._run(program, reads, self._walk.sizes(batch))
        return values

    def _input(self, name: str, batch: int) -> torch.Tensor:
        return self._walk.inputs([name], batch)[name]

    def _run(self, program: Program, reads: Tensors, sizes: Mapping[str, int]) -> Tensors:
        if not (self._recompute and torch.is_grad_enabled()):
            return program(reads, sizes)

        def run(*tensors: torch.Tensor) -> Tensors:
            return program(dict(zip(reads, tensors)), sizes)

        results: Tensors = checkpoint(run, *reads.values(), use_reentrant=False)
        return results


def _predictions(graph: Graph) -> tuple[str, ...]:
    if "logits" in graph.outputs:
        return ("logits",)
    return tuple(name for name, value in graph.outputs.items() if value.type.dtype.is_float)
