"""What is trained? Every plain float weight itself, or low-rank adapters beside the matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

import torch

from irlab.floats import as_f32
from irlab.ir import Graph
from irlab.ops import nn
from irlab.weight_uses import weight_uses
from irlab.weights import WeightSymbol, static_shape

_SPARSE: Final = 0.001
"""A matrix with a larger share of zeros was pruned: they stay zero."""


def trainable(graph: Graph, lora: bool) -> list[WeightSymbol]:
    """The weights of `graph` that healing may change: plain floats. With `lora` no tables of embeddings."""
    found = []
    for uses in weight_uses(graph).values():
        kind = uses.symbol.type
        is_table = any(isinstance(op, nn.Embedding) for op, _ in uses.users)
        if kind.encoding is None and kind.dtype.is_float and not (lora and is_table):
            found.append(uses.symbol)
    return found


def matrices(graph: Graph) -> set[str]:
    """The weights that are read as matrices of products, and in no other way."""
    return {name for name, uses in weight_uses(graph).items() if uses.is_matrix}


class Parameters(Mapping[str, torch.Tensor]):
    """The student's weights by name, as they are at this moment: what its programs read. Gradients flow to `leaves`.

    A matrix [out, in] with an adapter is W + B A with A[rank, in] random and B[out, rank] zero at first (Hu et al.
    2021, arXiv 2106.09685); with so small a side that it saves nothing, the matrix itself is trained.
    """

    def __init__(self, graph: Graph, rank: int | None, device: str, seed: int) -> None:
        self.leaves: dict[str, torch.Tensor] = {}
        self._frozen: dict[str, torch.Tensor] = {}
        self._masks: dict[str, torch.Tensor] = {}
        generator = torch.Generator().manual_seed(seed)
        adapted = matrices(graph) if rank else set()
        self._symbols = {symbol.name: symbol for symbol in trainable(graph, bool(rank))}
        for name, symbol in self._symbols.items():
            value = torch.from_numpy(as_f32(symbol.recipe.read()).copy()).to(device)
            if value.ndim > 1 and float((value == 0).float().mean()) > _SPARSE:
                self._masks[name] = value != 0
            if rank and name in adapted and 2 * rank < min(value.shape):
                first = torch.randn(rank, value.shape[1], generator=generator) / value.shape[1] ** 0.5
                self._frozen[name] = value
                self.leaves[f"{name}.A"] = first.to(device)
                self.leaves[f"{name}.B"] = torch.zeros(value.shape[0], rank, device=device)
            else:
                self.leaves[name] = value
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._frozen:
            value = torch.addmm(self._frozen[name], self.leaves[f"{name}.B"], self.leaves[f"{name}.A"])
        else:
            value = self.leaves[name]
        mask = self._masks.get(name)
        return value if mask is None else value * mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._symbols)

    def __len__(self) -> int:
        return len(self._symbols)


def training_bytes(graph: Graph, rank: int | None) -> int:
    """About what training takes beside activations: f32 weights, gradients and two moments of what is trained, and the
    f32 weights of all."""
    adapted = matrices(graph) if rank else set()
    total = numbers(graph)
    for symbol in trainable(graph, bool(rank)):
        shape = static_shape(symbol.type)
        count = math.prod(shape)
        if rank and symbol.name in adapted and 2 * rank < min(shape):
            total += 2 * count + 4 * rank * sum(shape)
        else:
            total += 4 * count
    return 4 * total


def numbers(graph: Graph) -> int:
    """How many numbers the weights of `graph` hold."""
    return sum(math.prod(static_shape(symbol.type)) for symbol in graph.weights().values())
