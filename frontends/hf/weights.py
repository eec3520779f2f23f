"""Where the weights of a lifted model lie: references into its checkpoint, and the few buffers that are computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from irlab.checkpoint import SINGLE_FILE, Checkpoint
from irlab.errors import InputError
from irlab.frontends.torch.dtypes import from_torch
from irlab.frontends.torch.tensors import LITERAL_ELEMENTS, in_memory, literal
from irlab.types import DType, f32, tensor
from irlab.weights import Cast, File, Recipe, WeightSymbol

if TYPE_CHECKING:
    import torch

    from irlab.frontends.torch.lower import WeightSource
    from irlab.layouts import QuantizedCheckpoint


def stored_dtype(checkpoint: Checkpoint | None) -> DType:
    """The dtype of the first floating-point tensor, which transformers takes for that of the model; f32 without one."""
    for name in checkpoint or ():
        assert checkpoint is not None
        dtype = checkpoint.type(name).dtype
        if dtype.is_float:
            return dtype
    return f32


def weight_references(
    directory: Path,
    checkpoint: Checkpoint | None,
    buffers: dict[str, torch.Tensor],
    base_prefix: str,
    quantized: QuantizedCheckpoint | None = None,
) -> WeightSource:
    """Weights by name. Without a checkpoint they refer to a file that is not there, and say so when they are read.

    `base_prefix` is what the names of a model with a head have in front of those of the bare model ("model").
    `quantized` says how matrices of the checkpoint are encoded, if they are.
    """
    stored = {_modern(name): name for name in checkpoint or ()}

    def source(name: str, meta: torch.Tensor) -> WeightSymbol:
        if name in buffers:
            values = buffers[name]
            small = values.numel() <= LITERAL_ELEMENTS
            return WeightSymbol(name, literal(values) if small else in_memory(values))
        of = tensor(from_torch(meta.dtype), tuple(meta.shape))
        if checkpoint is None:
            return WeightSymbol(name, File(directory / SINGLE_FILE, name, of))
        spellings = (name, f"{base_prefix}.{name}", name.removeprefix(f"{base_prefix}."))
        if quantized is not None:
            for spelling in spellings:
                stem = spelling.removesuffix(".weight")
                encoded = quantized.symbol(checkpoint, stem, name, tuple(meta.shape)) if stem != spelling else None
                if encoded is not None:
                    return encoded
        found = next((stored[s] for s in spellings if s in stored), None)
        if found is None:
            raise InputError(f"{checkpoint.path}: the checkpoint has no tensor called '{name}', which the model needs")
        file: Recipe = checkpoint.expect(found, tuple(meta.shape))
        return WeightSymbol(name, file if file.type is of else Cast(file, of.dtype))

    return source


def _modern(name: str) -> str:
    """The name of a tensor as models call it today; old BERT checkpoints have gamma and beta."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old) and "LayerNorm" in name:
            return name.removesuffix(old) + new
    return name
