"""Of what does a structural pass choose? The groups of an axis analysis, or pairs of them: query heads of a kv head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from irlab.axes import Axis, AxisAnalysis, Group, Place, coordinates
from irlab.axes.axis import new_size
from irlab.errors import InputError
from irlab.ir import Module
from irlab.weights import Recipe, WeightSymbol, take

Indices = npt.NDArray[np.intp]

_BLOCKS: Final = (256, 32)
"""Widths that block formats like, best first: K types of GGML, and the groups of all others."""

_ALLOWED_DRIFT: Final = 1 / 32
"""A wider multiple is taken where it changes the width by no more than this share."""


@dataclass(frozen=True)
class Cut:
    """What moves together at the indices of `group`: units to choose from. With `outer`, each index of that has units
    of its own, and loses as many as any other."""

    group: Group
    outer: Group | None = None

    @property
    def name(self) -> str:
        return self.group.name

    @property
    def classes(self) -> Indices:
        """The class of each unit: as many of each go."""
        return np.repeat(np.arange(self.outer.size if self.outer else 1), self.group.size)

    def units(self, axis: Axis) -> Indices:
        """The unit that each index of `axis` belongs to, -1 for none."""
        inner = coordinates(axis, self.group.leaf)
        if self.outer is None:
            return inner
        outer = coordinates(axis, self.outer.leaf)
        return np.where((inner >= 0) & (outer >= 0), outer * self.group.size + inner, -1)

    def readers(self) -> list[Place]:
        """The matrices that sum over the units, each with the axis."""
        return list(dict.fromkeys(place for place in self.group.places if place.reads))

    def taken(self, symbol: WeightSymbol, axes: AxisAnalysis, gone: Indices) -> Recipe:
        """The recipe of `symbol` without the units `gone`."""
        recipe = symbol.recipe
        for i, axis in enumerate(axes.of_weight(symbol.name)):
            stays = self.stays(axis, gone)
            if stays is not None:
                recipe = take(recipe, stays.tolist(), i)
        return recipe

    def stays(self, axis: Axis, gone: Indices) -> Indices | None:
        """The indices of `axis` that stay without the units `gone`; None where all do."""
        if not isinstance(axis.size, int):
            return None
        units = self.units(axis)
        mask = ~np.isin(units, gone)
        return None if mask.all() else np.flatnonzero(mask)

    def bytes_with(self, module: Module, axes: AxisAnalysis, size: int) -> int:
        """The bytes of all weights that have the group when its size is `size`."""
        weights = module.weights
        total = 0
        for name in {place.weight for place in self.group.places}:
            shape = tuple(new_size(axis, {self.group.leaf: size}) for axis in axes.of_weight(name))
            total += int(weights[name].type.with_shape(shape).size_bytes)  # type: ignore[arg-type]
        return total


def cuts(axes: AxisAnalysis, role: str, owner: str, *, within: str = "") -> list[Cut]:
    """The cuts of groups of `role`, each inside of the group of role `within` that it meets, if that is given. Groups
    whose size cannot change are left out. Raises InputError where nothing is left, with the reason."""
    groups = [group for group in axes.groups.values() if group.role == role]
    free = [group for group in groups if not group.fixed and group.readers]
    if not free:
        raise _nothing(groups, role, owner)
    return [Cut(group, _meeting(axes, group, within) if within else None) for group in free]


def _meeting(axes: AxisAnalysis, group: Group, role: str) -> Group | None:
    """The group of `role` that has its indices in the same places."""
    places = set(group.places)
    found = (other for other in axes.groups.values() if other.role == role and places & set(other.places))
    return next(found, None)


def _nothing(groups: Sequence[Group], role: str, owner: str) -> InputError:
    for group in groups:
        if group.fixed:
            hint = "prune before kv-cache" if "past_key_values" in group.fixed[0] else ""
            return InputError(f"{owner}: {group.name} stays at {group.size}: {group.fixed[0]}", hint)
    return InputError(f"{owner}: the graph has no {role} to prune", "--explain shows what moves together")


def require_plain(cut: Cut, weights: Mapping[str, WeightSymbol], owner: str) -> None:
    """Refuse weights that are encoded: codes of rows cannot be cut, or were chosen for what is left out."""
    for place in cut.group.places:
        kind = weights[place.weight].type
        if kind.encoding is not None:
            raise InputError(
                f"{owner}: weight '{place.weight}' is encoded already, as {kind.element}",
                f"put {owner} before the pass that encodes it, or start from a model in full precision",
            )


def width_multiple(size: int, wanted: int, multiple: int | None, targets: Sequence[str]) -> int:
    """What the width that is left must be a multiple of. By default that is the block size that formats like, the
    largest that divides `size` and hardly changes the `wanted` width."""
    if multiple is not None:
        return multiple
    blocks = _BLOCKS if not targets or "gguf" in targets else _BLOCKS[1:]
    for block in blocks:
        if size % block == 0 and abs(_nearest(wanted, block) - wanted) <= _ALLOWED_DRIFT * size:
            return block
    return 1


def _nearest(size: int, multiple: int) -> int:
    return (2 * size + multiple) // (2 * multiple) * multiple


def left_of(size: int, ratio: float, multiple: int, what: str) -> int:
    """How many of `size` are left after pruning `ratio`: the multiple nearest to it. Raises InputError where none would
    be left, or none would go."""
    left = min(size, _nearest(round(size * (1 - ratio)), multiple))
    if left < 1:
        raise InputError(
            f"{what}: ratio={ratio:g} leaves none of {size} at multiple={multiple}", "give a smaller ratio"
        )
    if left == size and ratio > 0:
        raise InputError(
            f"{what}: ratio={ratio:g} prunes none of {size} at multiple={multiple}",
            f"the least is ratio={multiple / size:.3g}" if multiple < size else "there is no smaller width",
        )
    return left


def resized_groups(
    axes: AxisAnalysis, found: Sequence[Cut], symbols: Mapping[str, WeightSymbol]
) -> Iterator[tuple[Cut, int]]:
    """The cuts whose weights among `symbols` have another shape, with the size of the group that the shape tells."""
    for cut in found:
        for place in cut.group.places:
            symbol = symbols.get(place.weight)
            axis = axes.of_weight(place.weight)[place.axis]
            if symbol is None or symbol.type.shape[place.axis] == axis.size:
                continue
            none, one = (new_size(axis, {cut.group.leaf: size}) for size in (0, 1))
            size = symbol.type.shape[place.axis]
            assert isinstance(none, int) and isinstance(one, int) and isinstance(size, int)
            yield cut, (size - none) // (one - none)
            break
