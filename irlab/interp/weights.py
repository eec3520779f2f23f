"""Weights at run time: read tensor by tensor when a step needs them, kept only within a budget."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..errors import InputError
from ..weights import WeightSymbol, static_shape
from .torch_types import Dtypes, to_torch, torch_dtype


class WeightReader:
    """Gives weights as tensors of their declared type; encoded ones decoded.

    `overrides` replaces weights by name (parameters being trained: gradients flow to them), and is asked at each read,
    so that it may compute them. Up to `cache_bytes` of what was read stays in memory. What came first stays: a model
    reads its weights round and round in one order, where dropping the least recently used would drop each one just
    before it is needed again.
    """

    def __init__(
        self,
        device: str,
        cache_bytes: int,
        overrides: Mapping[str, torch.Tensor] | None = None,
        dtypes: Dtypes = torch_dtype,
    ) -> None:
        self._device, self._dtypes = device, dtypes
        self._free = cache_bytes
        self._kept: dict[str, torch.Tensor] = {}
        self._overrides = overrides if overrides is not None else {}

    def __call__(self, symbol: WeightSymbol) -> torch.Tensor:
        if symbol.name in self._overrides:
            return self._fitted(symbol, self._overrides[symbol.name])
        found = self._kept.get(symbol.name)
        if found is None:
            found = to_torch(symbol.recipe.read()).to(self._device, self._dtypes(symbol.type.dtype))
            size_bytes = found.numel() * found.element_size()
            if size_bytes <= self._free:
                self._free -= size_bytes
                self._kept[symbol.name] = found
        return found

    def _fitted(self, symbol: WeightSymbol, tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) != static_shape(symbol.type):
            raise InputError(
                f"weight '{symbol.name}' is {symbol.type}, a tensor of shape {list(tensor.shape)} was given"
            )
        return tensor.to(device=self._device, dtype=self._dtypes(symbol.type.dtype))
