"""Where the weights of a lifted model lie: references into its checkpoint, and the few buffers that are computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from irlab.checkpoint import SINGLE_FILE, Checkpoint
from irlab.errors import InputError
from irlab.frontends.torch.dtypes import from_torch
from irlab.frontends.torch.tensors import LITERAL_ELEMENTS, in_memory, literal
from irlab.layouts.experts import expert_stack
from irlab.types import DType, TensorType, f32, tensor
from irlab.weights import Cast, File, Recipe, WeightSymbol

if TYPE_CHECKING:
    import torch

    from irlab.frontends.torch.lower import WeightSource
    from irlab.layouts import QuantizedCheckpoint


class Tensors(Protocol):
    """Where weights lie, by the names that transformers' model has for them: a `Checkpoint`, or what is like one."""

    @property
    def path(self) -> Path: ...

    def __iter__(self) -> Iterator[str]: ...

    def type(self, name: str) -> TensorType:
        """The type of tensor `name`. Raises InputError."""
        ...

    def expect(self, name: str, shape: tuple[int, ...]) -> Recipe:
        """Tensor `name`, which the configuration says has this shape. Raises InputError where it has another."""
        ...


def stored_dtype(checkpoint: Tensors | None) -> DType:
    """The dtype of the first floating-point tensor, which transformers takes for that of the model; f32 without one."""
    for name in checkpoint or ():
        assert checkpoint is not None
        dtype = checkpoint.type(name).dtype
        if dtype.is_float:
            return dtype
    return f32


def weight_references(
    directory: Path,
    checkpoint: Tensors | None,
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
        shape = tuple(meta.shape)

        def find(name: str, shape: tuple[int, ...]) -> Recipe | None:
            for spelling in _spellings(name, base_prefix):
                stem = spelling.removesuffix(".weight")
                if quantized is not None and stem != spelling:
                    assert isinstance(checkpoint, Checkpoint)
                    encoded = quantized.symbol(checkpoint, stem, name, shape)
                    if encoded is not None:
                        return encoded.recipe
                if spelling in stored:
                    file = checkpoint.expect(stored[spelling], shape)
                    same = file.type.encoding is not None or file.type.dtype is of.dtype
                    return file if same else Cast(file, of.dtype)
            return None

        found = find(name, shape) or expert_stack(name, shape, find)
        if found is None:
            raise InputError(f"{checkpoint.path}: the checkpoint has no tensor called '{name}', which the model needs")
        return WeightSymbol(name, found)

    return source


def _spellings(name: str, base_prefix: str) -> tuple[str, ...]:
    """What checkpoints may call the tensor `name` of a model. Mixtral's have another name for feed-forward blocks."""
    bare = name.removeprefix(f"{base_prefix}.")
    names = (name, f"{base_prefix}.{name}", bare)
    return (*names, *(n.replace(".mlp.", ".block_sparse_moe.") for n in names if ".mlp." in n))


def _modern(name: str) -> str:
    """The name of a tensor as models call it today; old BERT checkpoints have gamma and beta."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old) and "LayerNorm" in name:
            return name.removesuffix(old) + new
    return name
