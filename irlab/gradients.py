"""How do predictions depend on what each weight computes? Gradients layer by layer, each layer computed again.

The loss is that of tokens drawn from the model's own predictions, not of those that follow in the text: only so are
mean squares of gradients the Fisher information, and thus the curvature of the KL divergence (Kunstner et al. 2019,
arXiv 1905.12558). A few tokens of the text that the model does not expect at all would outweigh everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch.nn import functional

from .analysis import GradientAnalysis, OutputGradient, TableGradient
from .cache import Shelf
from .errors import InputError
from .interp.torch_types import to_torch
from .ir import Graph, Weight
from .layers import Layer
from .ops import nn
from .walk import Walk, require_finite, tapped
from .weights import static_shape
from .weights.recipe import AnyArray

Facts: TypeAlias = "dict[tuple[type[GradientAnalysis], str], GradientAnalysis]"
"""By kind and weight."""


def gradient_steps(walk: Walk, shelf: Shelf, seed: int) -> Iterator[None]:
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
        found: Facts = {}
        yield from _backward(walk, layer, found, seed)
        arrays: dict[str, AnyArray] = {}
        taps: dict[str, dict[str, list[str]]] = {}
        for number, ((kind, weight), fact) in enumerate(found.items()):
            taps.setdefault(kind.name, {})[weight] = [str(number)]
            arrays |= {f"{number}/{part}": array for part, array in fact.arrays().items()}
        shelf.put_arrays(layer.item, arrays, {"weights": taps})
        for name in layer.gives:
            walk.store.drop(_slope(name))


def _slope(name: str) -> str:
    """The name under which the gradient with respect to `name` waits."""
    return f"d {name}"


def _backward(walk: Walk, layer: Layer, found: Facts, seed: int) -> Iterator[None]:
    piece = tapped(layer)
    reads: list[tuple[nn.Linear | nn.Embedding, str]] = []
    reads += [(linear, f"y{i}") for i, linear in enumerate(op for tap in piece.taps for op in tap.linears)]
    tables = [op for op in piece.graph.find(nn.Embedding) if isinstance(op.weight.op, Weight)]
    reads += [(op, f"e{i}") for i, op in enumerate(tables)]
    ids = {op: f"i{i}" for i, op in enumerate(tables)}
    ends = {name: value for name, value in piece.graph.outputs.items() if name in layer.gives or name == "logits"}
    asked = {**{name: op.result for op, name in reads}, **{name: op.ids for op, name in ids.items()}}
    piece.graph.set_outputs({**ends, **asked})
    # Gradients flow only to what depends on something that asks for them: where nothing flows in, weights do.
    leaves = {} if any(value.type.dtype.is_float for value in layer.reads.values()) else _float_weights(piece.graph)
    program = walk.program(piece.graph, leaves)
    for batch in range(walk.batches):
        inputs = walk.inputs(list(layer.reads), batch)
        floats = {name: x.requires_grad_() for name, x in inputs.items() if x.is_floating_point()}
        with torch.enable_grad():
            results = program(inputs, walk.sizes(batch))
            scalar = _pull(walk, layer, batch, {name: results[name] for name in ends}, seed)
        wanted = {**floats, **{name: results[name] for _, name in reads if results[name].requires_grad}}
        if not wanted:
            return
        slopes = torch.autograd.grad(scalar, list(wanted.values()), allow_unused=True)
        by_name = dict(zip(wanted, slopes))
        for op, name in reads:
            slope = by_name.get(name)
            if slope is not None:
                _take_in(found, op, results[ids[op]] if isinstance(op, nn.Embedding) else None, slope.float())
        for name in floats:
            slope = by_name[name]
            if slope is not None:
                _add_slope(walk, name, batch, slope)
        yield


def _take_in(found: Facts, op: nn.Linear | nn.Embedding, ids: torch.Tensor | None, slope: torch.Tensor) -> None:
    """Add the gradient with respect to what `op` computed to the facts of its weight."""
    assert isinstance(op.weight.op, Weight)
    symbol = op.weight.op.symbol
    kind = OutputGradient if ids is None else TableGradient
    rows, columns = static_shape(symbol.type)[-2:]
    fact = found.setdefault((kind, symbol.name), kind.empty(rows, columns))
    slope = slope.reshape(-1, slope.shape[-1])
    if isinstance(fact, TableGradient) and ids is not None:
        fact.add(ids.reshape(-1), slope)
    elif isinstance(fact, OutputGradient):
        fact.add(slope)


def _float_weights(graph: Graph) -> dict[str, torch.Tensor]:
    floats = [symbol for symbol in graph.weights().values() if symbol.type.dtype.is_float]
    return {symbol.name: to_torch(symbol.recipe.read()).requires_grad_() for symbol in floats}


def _pull(walk: Walk, layer: Layer, batch: int, results: Mapping[str, torch.Tensor], seed: int) -> torch.Tensor:
    """A scalar whose gradient is that of the loss, as far as it depends on what `layer` computed."""
    parts = []
    for name, tensor in results.items():
        if name == "logits" and name in layer.outputs:
            predicted = tensor.reshape(-1, tensor.shape[-1]).float()
            parts.append(functional.cross_entropy(predicted, drawn(predicted, seed, batch), reduction="sum"))
        elif walk.store.has(_slope(name), batch):
            parts.append((tensor * walk.store.get(_slope(name), batch).to(tensor.device)).sum())
    return torch.stack([part.float() for part in parts]).sum()


def drawn(logits: torch.Tensor, seed: int, batch: int) -> torch.Tensor:
    """A token for each row of logits f32[rows, vocab], drawn by its probability: i64[rows]."""
    generator = torch.Generator().manual_seed((seed << 32) + batch)
    chances = torch.softmax(logits.detach(), -1).cpu()
    return torch.multinomial(chances, 1, generator=generator)[:, 0].to(logits.device)


def _add_slope(walk: Walk, name: str, batch: int, slope: torch.Tensor) -> None:
    """Add to the gradient with respect to `name`: several layers may have read it."""
    if walk.store.has(_slope(name), batch):
        slope = slope + walk.store.get(_slope(name), batch).to(slope.device)
    walk.store.put(_slope(name), batch, slope)
