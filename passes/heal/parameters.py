"""What is trained? Every plain float weight itself, or low-rank adapters beside the matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import torch

from irlab.floats import as_f32
from irlab.ir import Graph
from irlab.passes.heal.trainable import matrices, trainable

_SPARSE: Final = 0.001
"""A matrix with a larger share of zeros was pruned: they stay zero."""


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
