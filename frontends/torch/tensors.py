"""How live torch tensors become weights: shared in memory, or written out as literals if they are small constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from irlab.frontends.torch.dtypes import from_torch
from irlab.types import DType, tensor
from irlab.weights import Array, Literal, Recipe, WeightSymbol, numpy_dtype

if TYPE_CHECKING:
    import torch

    from irlab.frontends.torch.export import Exported
    from irlab.frontends.torch.lower import WeightSource

LITERAL_ELEMENTS = 1024
"""Constants of up to this many numbers stand in the IR text."""


def literal(values: torch.Tensor) -> Literal:
    """A recipe that holds the numbers of a small tensor."""
    of = tensor(from_torch(values.dtype), tuple(values.shape))
    return Literal(of, tuple(values.detach().cpu().flatten().tolist()))


def in_memory(values: torch.Tensor) -> Array:
    """A recipe that shares the memory of `values` (a copy where it is not contiguous, or not on the CPU)."""
    import torch

    dtype: DType = from_torch(values.dtype)
    plain = values.detach().cpu().contiguous()
    if dtype.is_float and dtype.bits < 32 and dtype.name != "f16":
        raw = plain.view(torch.int16 if dtype.bits == 16 else torch.uint8).numpy()
        array: Any = raw.view(numpy_dtype(dtype))
    else:
        array = plain.numpy()
    return Array(tensor(dtype, tuple(values.shape)), array)


def weight_in_memory(exported: Exported) -> WeightSource:
    """The weights of a live module: its parameters and buffers by reference, its small constants as literals."""
    program = exported.program
    held: dict[str, Any] = {**program.constants, **program.state_dict}
    constants = set(program.graph_signature.inputs_to_lifted_tensor_constants.values())

    def source(name: str, meta: torch.Tensor) -> WeightSymbol:
        values: torch.Tensor = held[name]
        small = name in constants and values.numel() <= LITERAL_ELEMENTS
        recipe: Recipe = literal(values) if small else in_memory(values)
        return WeightSymbol(name, recipe)

    return source
