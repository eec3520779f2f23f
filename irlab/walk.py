"""How is a model run layer by layer? All batches through one layer, then through the next, with one layer in memory.

    with Activations() as store:
        walk = Walk(graph, batches, "cpu", store)
        for layer in walk.layers:
            for _ in walk.collect(layer, statistics): ...     # what its matrices read (analysis/)
            for _ in walk.advance(layer): ...                 # what the next layers read

Both are generators of a step per batch, so that progress can be shown around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch

from .activations import Activations
from .calibration import Batch
from .decoder import input_sizes, with_defaults
from .errors import InputError
from .interp import Program
from .interp.torch_types import Dtypes, as_input, torch_dtype, widened_dtype
from .ir import Graph, Value, Weight
from .layers import Layer, layers
from .ops import nn
from .ops.nn import NNOp

WEIGHT_BYTES: Final = 8 << 30
"""The weights of one layer stay in memory while all batches run through it."""


@dataclass(frozen=True)
class Tap:
    """A value that matrices of a layer read, as output `name` of the tapped graph, with the linears that read it."""

    name: str
    weights: tuple[str, ...]
    linears: tuple[nn.Linear, ...]


@dataclass(frozen=True)
class TappedLayer:
    """A layer in which every matrix stands in an `nn.linear` of its own. `graph` returns the taps."""

    graph: Graph
    taps: tuple[Tap, ...]


def tapped(layer: Layer, more: Mapping[str, Value] = MappingProxyType({})) -> TappedLayer:
    """`layer` with ops that hold several matrices spelled out, so that what each of them reads is a value. It gives
    `more` values of the layer under these names."""
    graph = layer.graph({**layer.gives, **layer.outputs, **more})
    for op in graph.ops():
        if isinstance(op, NNOp) and op.matrices and not isinstance(op, nn.Linear):
            values = op.decompose()
            graph.replace(op, *(values if isinstance(values, tuple) else (values,)))
    readers: dict[Value, list[nn.Linear]] = {}
    for linear in graph.find(nn.Linear):
        if isinstance(linear.weight.op, Weight):
            readers.setdefault(linear.x, []).append(linear)
    taps = []
    for number, found in enumerate(readers.values()):
        names = dict.fromkeys(op.weight.op.symbol.name for op in found if isinstance(op.weight.op, Weight))
        taps.append(Tap(f"tap{number}", tuple(names), tuple(found)))
    return TappedLayer(graph, tuple(taps))


class Walk:
    """A graph on its way through `batches`; what flows between layers waits in `store`.

    The weights of layers that are still ahead may change, and those of the current one before it is advanced: call
    `refresh` afterwards. Missing inputs that a decoder can do without are filled in. It computes in `working_dtypes`.
    """

    def __init__(self, graph: Graph, batches: Sequence[Batch], device: str, store: Activations) -> None:
        self.graph, self.device, self.store = graph, device, store
        self.dtypes = working_dtypes(device)
        self.layers = layers(graph)
        self.batches = len(batches)
        self._sizes: list[dict[str, int]] = []
        for batch, given in enumerate(batches):
            inputs = with_defaults(graph, given)
            self._sizes.append(input_sizes(graph, inputs).known)
            for value in graph.inputs:
                name = value.name or ""
                if name not in inputs:
                    raise InputError(f"calibration gives nothing for the input '{name}'")
                store.put(name, batch, as_input(inputs[name], value.type, name, "cpu", self.dtypes))

    def refresh(self) -> None:
        """See the graph as it is now."""
        self.layers = layers(self.graph)

    def is_read(self, layer: Layer) -> bool:
        """Whether a later layer reads what `layer` gives."""
        return bool(layer.gives)

    def outputs(self, layer: Layer, graph: Graph) -> Iterator[dict[str, torch.Tensor]]:
        """The outputs of `graph`, made of `layer`, for each batch in turn."""
        program = self.program(graph)
        names = [value.name or "" for value in graph.inputs]
        with torch.no_grad():
            for batch in range(self.batches):
                yield program(self.inputs(names, batch), self._sizes[batch])

    def program(self, graph: Graph, weights: Mapping[str, torch.Tensor] | None = None) -> Program:
        """`graph`, made of layers, ready to run on what is in the store."""
        return Program(graph, device=self.device, cache_bytes=WEIGHT_BYTES, weights=weights, dtypes=self.dtypes)

    def inputs(self, names: Sequence[str], batch: int) -> dict[str, torch.Tensor]:
        """The values of these names for one batch."""
        return {name: self.store.get(name, batch).to(self.device) for name in names}

    def sizes(self, batch: int) -> Mapping[str, int]:
        """The sizes of one batch by symbol."""
        return self._sizes[batch]

    def advance(self, layer: Layer) -> Iterator[None]:
        """Run all batches through `layer`, and forget what no later layer reads; a step for each batch."""
        if self.is_read(layer):
            for batch, results in enumerate(self.outputs(layer, layer.graph())):
                for name, tensor in results.items():
                    require_finite(tensor, f"what {layer.name} computes")
                    self.store.put(name, batch, tensor)
                yield
        self.forget(layer)

    def forget(self, layer: Layer) -> None:
        """Drop what no layer after `layer` reads."""
        later = {name for other in self.layers[layer.index + 1 :] for name in other.reads}
        for name in layer.reads:
            if name not in later:
                self.store.drop(name)


def working_dtypes(device: str) -> Dtypes:
    """In what models run over texts. On CPUs those in bf16 and f16 compute in f32, which is faster there and what CPU
    runtimes do: what is measured is what the weights say, without the rounding of activations."""
    return widened_dtype if device == "cpu" else torch_dtype


def require_finite(tensor: torch.Tensor, what: str) -> None:
    """Raise InputError if `tensor` holds NaN or an infinity."""
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        kind = "NaN" if bool(tensor.isnan().any()) else "an infinity"
        raise InputError(
            f"{what} on the calibration data holds {kind}", "run in f32 (cast{dtype=f32}), or check the weights"
        )
