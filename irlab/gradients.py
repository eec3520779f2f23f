"""How does the loss depend on what each weight computes? Gradients layer by layer, each layer computed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch.nn import functional

from .analysis import OutputGradient
from .cache import Shelf
from .errors import InputError
from .interp import Program
from .interp.torch_types import to_torch
from .ir import Graph
from .layers import Layer
from .walk import WEIGHT_BYTES, Walk, require_finite, tapped


def gradient_steps(walk: Walk, shelf: Shelf) -> Iterator[None]:
    """Forward through all layers, keeping what each of them read; then backward, each layer computed again."""
    if all(shelf.has(layer.item) for layer in walk.layers):
        return
    last = walk.layers[-1]
    if "logits" not in last.outputs or "input_ids" not in {v.name for v in walk.graph.inputs}:
        raise InputError("gradients need a model that predicts tokens: input_ids in, logits out")
    for layer in walk.layers[:-1]:
        for batch, results in enumerate(walk.outputs(layer, layer.graph())):
            for name, tensor in results.items():
                require_finite(tensor, f"what {layer.name} computes")
                walk.store.put(name, batch, tensor)
            yield
    for layer in reversed(walk.layers):
        found: dict[str, OutputGradient] = {}
        yield from _backward(walk, layer, found)
        arrays = {f"{w}/{part}": a for w, fact in found.items() for part, a in fact.arrays().items()}
        shelf.put_arrays(layer.item, arrays, {"weights": {weight: [weight] for weight in found}})
        for name in layer.gives:
            walk.store.drop(_slope(name))


def _slope(name: str) -> str:
    """The name under which the gradient with respect to `name` waits."""
    return f"d {name}"


def _backward(walk: Walk, layer: Layer, found: dict[str, OutputGradient]) -> Iterator[None]:
    piece = tapped(layer)
    linears = [(linear, f"y{i}") for i, linear in enumerate(op for tap in piece.taps for op in tap.linears)]
    ends = {name: value for name, value in piece.graph.outputs.items() if name in layer.gives or name == "logits"}
    piece.graph.set_outputs({**ends, **{name: linear.result for linear, name in linears}})
    # Gradients flow only to what depends on something that asks for them: where nothing flows in, weights do.
    leaves = {} if any(value.type.dtype.is_float for value in layer.reads.values()) else _float_weights(piece.graph)
    program = Program(piece.graph, device=walk.device, cache_bytes=WEIGHT_BYTES, weights=leaves)
    for batch in range(walk.batches):
        inputs = walk.inputs(list(layer.reads), batch)
        floats = {name: x.requires_grad_() for name, x in inputs.items() if x.is_floating_point()}
        with torch.enable_grad():
            results = program(inputs, walk.sizes(batch))
            scalar = _pull(walk, layer, batch, {name: results[name] for name in ends})
        wanted = {**floats, **{name: results[name] for _, name in linears if results[name].requires_grad}}
        if not wanted:
            return
        slopes = torch.autograd.grad(scalar, list(wanted.values()), allow_unused=True)
        by_name = dict(zip(wanted, slopes))
        for linear, name in linears:
            slope = by_name.get(name)
            if slope is not None:
                weight = linear.weight.op.symbol.name  # type: ignore[union-attr]
                fact = found.setdefault(weight, OutputGradient(0, np.zeros(slope.shape[-1])))
                fact.add(slope.reshape(-1, slope.shape[-1]).float())
        for name in floats:
            slope = by_name[name]
            if slope is not None:
                _add_slope(walk, name, batch, slope)
        yield


def _float_weights(graph: Graph) -> dict[str, torch.Tensor]:
    floats = [symbol for symbol in graph.weights().values() if symbol.type.dtype.is_float]
    return {symbol.name: to_torch(symbol.recipe.read()).requires_grad_() for symbol in floats}


def _pull(walk: Walk, layer: Layer, batch: int, results: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A scalar whose gradient is that of the loss, as far as it depends on what `layer` computed."""
    parts = []
    for name, tensor in results.items():
        if name == "logits" and name in layer.outputs:
            ids = walk.store.get("input_ids", batch).to(tensor.device)
            predicted = tensor[:, :-1].reshape(-1, tensor.shape[-1]).float()
            parts.append(functional.cross_entropy(predicted, ids[:, 1:].reshape(-1).long(), reduction="sum"))
        elif walk.store.has(_slope(name), batch):
            parts.append((tensor * walk.store.get(_slope(name), batch).to(tensor.device)).sum())
    return torch.stack([part.float() for part in parts]).sum()


def _add_slope(walk: Walk, name: str, batch: int, slope: torch.Tensor) -> None:
    """Add to the gradient with respect to `name`: several layers may have read it."""
    if walk.store.has(_slope(name), batch):
        slope = slope + walk.store.get(_slope(name), batch).to(slope.device)
    walk.store.put(_slope(name), batch, slope)
