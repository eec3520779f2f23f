"""How does a graph lose indices of some axes? Weights are cut, and sizes in attributes follow.

    keep(graph, {"model.layers.0.mlp:neurons": indices})

A size in an attribute (of a reshape, a split ...) is computed from the axes of the values that it describes, and types
are inferred again, so that the result is right by construction or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..dims import Size
from ..errors import InputError
from ..ir import Graph, Op, Value, Weight
from ..ops import control, prim
from ..types import tensor
from ..weight_uses import graphs
from ..weights import Recipe, WeightSymbol, take
from .analysis import AxisAnalysis, Group, Positions, positions
from .axis import Axis, new_size, terms
from .rules import Axes

Kept: TypeAlias = Mapping[str, Sequence[int] | npt.NDArray[Any]]
"""The indices that are left, in ascending order, by the name of the group."""

_Resized: TypeAlias = Callable[[Axes], tuple[Size, ...]]

_ATTRIBUTES: Final[dict[type[Op], Callable[[Any, AxisAnalysis, _Resized], dict[str, Any]]]] = {
    prim.Reshape: lambda op, at, sizes: {"shape": sizes(at.of(op.result))},
    prim.Expand: lambda op, at, sizes: {"shape": sizes(at.of(op.result))},
    prim.Constant: lambda op, at, sizes: {"type": tensor(op.type.element, sizes(at.of(op.result)))},
    prim.Split: lambda op, at, sizes: {"sizes": tuple(sizes(at.of(piece))[op.axis] for piece in op.results)},
    prim.Slice: lambda op, at, sizes: _slice_bounds(op, at, sizes),
    prim.Conv: lambda op, at, sizes: {"groups": _groups(op, at, sizes)},
}
"""The attributes of an op that are sizes, as they become."""


def keep(graph: Graph, kept: Kept, axes: AxisAnalysis | None = None) -> dict[str, WeightSymbol]:
    """Leave only these indices of some groups in `graph`, in place; gives the weights that were cut, which are made
    lazily. Raises InputError for a group whose size cannot change, and where nothing is left of one."""
    axes = axes or AxisAnalysis(graph)
    indices = {axes.groups[name].leaf: _checked(axes.groups[name], chosen) for name, chosen in kept.items()}
    before = graph.weights()
    symbols = {}
    for name in _touched(axes, kept):
        symbols[name] = WeightSymbol(name, cut(before[name], axes.of_weight(name), indices))
    resize(graph, axes, {leaf: len(chosen) for leaf, chosen in indices.items()}, symbols)
    return symbols


def cut(symbol: WeightSymbol, axes: Axes, indices: Mapping[Axis, Positions]) -> Recipe:
    """The recipe of `symbol` with only `indices` of its indivisible axes left."""
    recipe = symbol.recipe
    for i, axis in enumerate(axes):
        if isinstance(axis.size, int):
            chosen = positions(axis, indices)
            if len(chosen) < axis.size:
                recipe = take(recipe, chosen.tolist(), i)
    return recipe


def resize(graph: Graph, axes: AxisAnalysis, sizes: Mapping[Axis, int], symbols: Mapping[str, WeightSymbol]) -> None:
    """Let `graph` read `symbols` in which the indivisible axes in `sizes` have those sizes; all else follows."""

    def resized(of: Axes) -> tuple[Size, ...]:
        return tuple(new_size(axis, sizes) for axis in of)

    for each in reversed(list(graphs(graph))):
        for value in each.inputs:
            if value in axes:
                value.type = value.type.with_shape(resized(axes.of(value)))
        for op in each.topo():
            _rebuild(each, op, axes, resized, symbols)


def _rebuild(graph: Graph, op: Op, axes: AxisAnalysis, resized: _Resized, symbols: Mapping[str, WeightSymbol]) -> None:
    if isinstance(op, Weight):
        if op.symbol.name in symbols:
            new = prim.weight(symbols[op.symbol.name])
            axes.moved(op.result, new)
            graph.replace(op, new)
        return
    attributes: dict[str, Any] = {}
    if type(op) in _ATTRIBUTES and op.results[0] in axes:
        found = _ATTRIBUTES[type(op)](op, axes, resized)
        attributes = {name: new for name, new in found.items() if new != getattr(op, name)}
    changed = any(v in axes and resized(axes.of(v)) != v.type.shape for v in op.results)
    if attributes or changed or isinstance(op, control.If):
        made = op.rebuild(op.operands, **attributes)
        for old, new in zip(op.results, made.results):
            axes.moved(old, new)
        graph.replace(op, *made.results)


def _slice_bounds(op: prim.Slice, axes: AxisAnalysis, resized: _Resized) -> dict[str, Any]:
    """Of a cut axis, the piece that is taken begins after those before it; all of every step-th index stays all."""
    assert isinstance(op.x, Value)
    whole, taken = axes.of(op.x)[op.axis], axes.of(op.result)[op.axis]
    (size,), (length,) = resized((whole,)), resized((taken,))
    if length == taken.size and size == whole.size:
        return {}
    if op.step != 1:
        return {"stop": size}
    start = _before(whole, op.start, resized)
    return {"start": start, "stop": start + length}


def _before(axis: Axis, start: Size, resized: _Resized) -> Size:
    """The new index of index `start` of a sum that is cut there."""
    old: Size = 0
    new: Size = 0
    for term in terms(axis):
        if old == start:
            break
        old, new = old + term.size, new + resized((term,))[0]
    return new


def _groups(op: prim.Conv, axes: AxisAnalysis, resized: _Resized) -> Size:
    channels, inner = resized((axes.of(op.x)[1], axes.of(op.weight)[1]))
    return op.groups if op.groups == 1 else channels // inner


def _touched(axes: AxisAnalysis, kept: Kept) -> list[str]:
    """The weights that have one of these groups, each once, in order."""
    return list(dict.fromkeys(place.weight for name in kept for place in axes.groups[name].places))


def _checked(group: Group, chosen: Sequence[int] | npt.NDArray[Any]) -> Positions:
    indices = np.asarray(chosen, np.intp)
    if group.fixed:
        raise InputError(f"{group.name} cannot be pruned: {group.fixed[0]}")
    if not len(indices):
        raise InputError(f"{group.name}: nothing of its {group.size} would be left")
    if np.any(np.diff(indices) <= 0) or indices[0] < 0 or indices[-1] >= group.size:
        raise InputError(f"{group.name}: the indices to keep are not in ascending order below {group.size}")
    return indices
