"""Random inputs that a graph accepts: small sizes for its symbols, indices that lie inside what they index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from . import dims
from .dims import Size
from .ir import Graph, Op, Value
from .ops import nn, prim
from .types import Kind
from .weights import Literal, WeightSymbol, static_shape

if TYPE_CHECKING:
    import torch

    from .interp import Sizes

SMALL_SIZES: Final = {"batch": 2, "seq": 7, "past": 5}
"""What the usual symbols are bound to; other symbols get the numbers after these."""

_SMALL_INTEGERS: Final = 3
"""Integers that index nothing are drawn below this: ids of the smallest vocabulary, flags, positions."""

_INDEXED: Final[dict[type[Op], tuple[str, Callable[..., Size]]]] = {
    nn.Embedding: ("ids", lambda op: op.weight.type.shape[0]),
    prim.Gather: ("indices", lambda op: op.x.type.shape[op.axis]),
    prim.GatherElements: ("indices", lambda op: op.x.type.shape[op.axis]),
    prim.Scatter: ("indices", lambda op: op.x.type.shape[op.axis]),
    nn.KVUpdate: ("pos", lambda op: op.cache.type.shape[2] - op.new.type.shape[2] + 1),
}
"""The operand of an op that indexes, and the size that it must stay below."""

_KEEPS_NUMBERS: Final = (prim.Reshape, prim.Expand, prim.Transpose, prim.Slice, prim.Cast)


def small_sizes(graph: Graph, scale: int = 1) -> Sizes:
    """A small number for each symbol in the graph, all different, `scale` times the smallest choice."""
    from .interp import Sizes

    values = [*graph.inputs, *(result for op in graph.topo() for result in op.results)]
    names = dict.fromkeys(n for v in values for d in v.type.shape for n in sorted(dims.symbols(d)))
    known = {name: SMALL_SIZES[name] for name in names if name in SMALL_SIZES}
    free = iter(range(3, 3 + 3 * len(names)))
    for name in names:
        if name not in known:
            known[name] = next(n for n in free if n not in known.values() and n not in SMALL_SIZES.values())
    return Sizes({name: scale * n for name, n in known.items()})


def probe(values: Iterable[Value], sizes: Sizes, seed: int, *, positive: bool = False) -> dict[str, torch.Tensor]:
    """A random tensor for each of `values` by name: floats normal, or in 0.5..1.5 if `positive`; indices in range."""
    import torch

    from .interp import torch_dtype

    random = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for value in values:
        shape, dtype = sizes.shape(value.type.shape), value.type.dtype
        if dtype.kind is Kind.FLOAT:
            numbers = torch.rand(shape, generator=random) + 0.5 if positive else torch.randn(shape, generator=random)
        else:
            bound = 2 if dtype.kind is Kind.BOOL else min(map(sizes, _bounds(value)), default=_SMALL_INTEGERS)
            numbers = torch.randint(0, max(1, bound), shape, generator=random)
        found[value.name or ""] = numbers.to(torch_dtype(dtype))
    return found


def _bounds(value: Value) -> list[Size]:
    """The sizes below which the integers of `value` must stay, by the ops that index with them."""
    bounds: list[Size] = []
    stack: list[Value] = [value]
    while stack:
        current = stack.pop()
        for user in current.uses:
            name, bound = _INDEXED.get(type(user), ("", None))
            if bound is not None and getattr(user, name) is current:
                bounds.append(bound(user))
            elif isinstance(user, _KEEPS_NUMBERS):
                stack.extend(user.results)
    return bounds


def stand_ins(symbols: Sequence[WeightSymbol], seed: int) -> Mapping[str, torch.Tensor]:
    """Random tensors in the place of weights, of a size that keeps activations near 1; literals stay as they are."""
    import torch

    from .interp import torch_dtype

    random = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for symbol in symbols:
        if isinstance(symbol.recipe, Literal):
            continue
        shape, dtype = static_shape(symbol.type), torch_dtype(symbol.type.dtype)
        if dtype.is_floating_point:
            numbers = torch.randn(shape, generator=random)
            found[symbol.name] = (numbers / shape[-1] ** 0.5 if len(shape) > 1 else 1 + numbers / 8).to(dtype)
        else:
            found[symbol.name] = torch.randint(0, 2, shape, generator=random).to(dtype)
    return found
