"""How are the numbers of a GGML block scaled, and which scales lose least? One class for each way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np

from ...errors import InputError
from ..base import AnyArray, Floats
from ..grid import Levels
from ..levels import Integers, Table
from ..search import IntegerGrid, search_scales

Fields = dict[str, AnyArray]
"""What a block stores besides codes, by name: [blocks, count]."""


class Scaling(NamedTuple):
    """What code q of group g stands for: levels[q] * scale[:, g] + offset[:, g]; f32[blocks, groups]."""

    scale: Floats
    offset: Floats | None = None


class Scales(ABC):
    """Base of the ways to scale a block."""

    has_offset: ClassVar[bool] = False
    """Whether something is added to the scaled levels."""

    @property
    def group_count(self) -> int:
        """Groups of a block that have scales of their own."""
        return 1

    @abstractmethod
    def choose(self, x: Floats, importance: Floats, levels: Levels) -> Fields:
        """The best fields found for blocks x: f32[n, size]; importance: f32[m, size], row i % m for block i; with no
        row, numbers weigh by their own size. Raises InputError for numbers that the scales cannot reach."""

    @abstractmethod
    def scaling(self, fields: Fields) -> Scaling:
        """What the stored fields mean."""


def _ascending(levels: Levels) -> tuple[float, ...]:
    if isinstance(levels, Table):
        return levels.ascending
    assert isinstance(levels, Integers)
    return tuple(float(number) for number in range(levels.lowest, levels.highest + 1))


def _as_half(x: Floats, *scales: Floats) -> tuple[AnyArray, ...]:
    """Scales [n] of blocks x as f16[n, 1]."""
    with np.errstate(over="ignore"):
        halves = tuple(scale.astype(np.float16)[:, None] for scale in scales)
    if not all(np.isfinite(half).all() for half in halves):
        raise InputError(f"numbers as large as {float(np.abs(x).max()):.3g} do not fit scales of float16")
    return halves


@dataclass(frozen=True)
class OwnScale(Scales):
    """d * level, d an f16. The same scales as of `IntegerEncoding` where levels are `bits` of integers."""

    bits: int

    def choose(self, x: Floats, importance: Floats, levels: Levels) -> Fields:
        assert isinstance(levels, Integers)
        grid = IntegerGrid(self.bits, levels.lowest, levels.highest, True, np.dtype(np.float16))
        scales, _ = search_scales(x, grid, importance if len(importance) else None)
        return {"d": scales[:, None]}

    def scaling(self, fields: Fields) -> Scaling:
        return Scaling(fields["d"].astype(np.float32))


@dataclass(frozen=True)
class TableScale(Scales):
    """d * level, d an f16. `steps`: where among the levels the extreme number of a block may come to lie."""

    steps: tuple[float, ...]

    def choose(self, x: Floats, importance: Floats, levels: Levels) -> Fields:
        from .. import kernels

        scale = np.empty(len(x), np.float32)
        search = kernels.multiple(x.shape[1], _ascending(levels))
        search(x, importance, np.array(self.steps, np.float32), scale)
        return {"d": _as_half(x, scale)[0]}

    def scaling(self, fields: Fields) -> Scaling:
        return Scaling(fields["d"].astype(np.float32))


@dataclass(frozen=True)
class ScaleAndOffset(Scales):
    """d * q + m, both f16. `steps`: numbers of steps that may span a block."""

    has_offset = True

    steps: tuple[float, ...]

    def choose(self, x: Floats, importance: Floats, levels: Levels) -> Fields:
        from .. import kernels

        assert isinstance(levels, Integers)
        scale, offset = np.empty((2, len(x)), np.float32)
        search = kernels.line(x.shape[1], levels.highest)
        search(x, importance, np.array(self.steps, np.float32), scale, offset)
        d, m = _as_half(x, scale, offset)
        return {"d": d, "m": m}

    def scaling(self, fields: Fields) -> Scaling:
        return Scaling(fields["d"].astype(np.float32), fields["m"].astype(np.float32))


@dataclass(frozen=True)
class GroupScales(Scales):
    """Scales of each of `groups` equal groups of a block."""

    groups: int

    @property
    def group_count(self) -> int:
        return self.groups


@dataclass(frozen=True)
class AffineScales(GroupScales):
    """d * a * q - dmin * b: d and dmin f16, a and b integers up to `highest` of each of `groups` groups, stored as one
    field "scales", first all a, then all b. See kernels/ for `steps`, `turns` and `reach`."""

    has_offset = True

    highest: int
    steps: tuple[float, ...]
    turns: int = 2
    reach: int = 1

    def choose(self, x: Floats, importance: Floats, levels: Levels) -> Fields:
        from .. import kernels

        assert isinstance(levels, Integers)
        size = x.shape[1] // self.groups
        d, dmin = np.empty((2, len(x)), np.float32)
        a, b = np.empty((2, len(x), self.groups), np.uint8)
        search = kernels.affine(size, self.groups, levels.highest, self.highest, self.turns, self.reach)
        search(x, importance, np.array(self.steps, np.float32), d, dmin, a, b)
        half_d, half_dmin = _as_half(x, d, dmin)
        return {"d": half_d, "dmin": half_dmin, "scales": np.concatenate([a, b], axis=1)}

    def scaling(self, fields: Fields) -> Scaling:
        a, b = np.split(fields["scales"].astype(np.float32), 2, axis=1)
        d, dmin = fields["d"].astype(np.float32), fields["dmin"].astype(np.float32)
        return Scaling(d * a, -(dmin * b))


@dataclass(frozen=True)
class SignedScales(GroupScales):
    """d * a * level: d an f16, a an integer lowest..highest of each of `groups` groups, stored plus `bias`."""

    lowest: int
    highest: int
    bias: int
    steps: tuple[float, ...]
    turns: int = 2
    reach: int = 1

    def choose(self, x: Floats, importance: Floats, levels: Levels) -> Fields:
        from .. import kernels

        size = x.shape[1] // self.groups
        d, a = np.empty(len(x), np.float32), np.empty((len(x), self.groups), np.int8)
        search = kernels.signed(
            size, self.groups, _ascending(levels), self.lowest, self.highest, self.turns, self.reach
        )
        search(x, importance, np.array(self.steps, np.float32), d, a)
        return {"d": _as_half(x, d)[0], "scales": a.view(np.uint8) + np.uint8(self.bias)}

    def scaling(self, fields: Fields) -> Scaling:
        a = (fields["scales"] - np.uint8(self.bias)).view(np.int8).astype(np.float32)
        return Scaling(fields["d"].astype(np.float32) * a)


@dataclass(frozen=True)
class ByteScales(GroupScales):
    """A scale of 8 bits for each of `groups` groups: a table says what byte stands for what scale.

    The bytes tried are those from `below` under to `above` over the one whose scale just reaches the extreme number.
    """

    below: int
    above: int
    table: ClassVar[Floats]
    """The scale of each byte."""
    usable: ClassVar[int]
    """So many bytes, from 0 on, have ascending scales; the others are never written."""

    def choose(self, x: Floats, importance: Floats, levels: Levels) -> Fields:
        from .. import kernels

        size = x.shape[1] // self.groups
        groups = x.reshape(-1, size)
        ascending = _ascending(levels)
        reach = np.abs(groups).max(1) / np.float32(ascending[-1])
        if reach.size and float(reach.max()) > float(self.table[self.usable - 1]) * 1.01:
            raise InputError(f"numbers as large as {float(np.abs(x).max()):.3g} do not fit scales of 8 bits")
        near = np.searchsorted(self.table[: self.usable], reach)[:, None] + np.arange(-self.below, self.above + 1)
        tried = np.clip(near, 0, self.usable - 1)
        best = np.empty(len(groups), np.int64)
        kernels.nearest_scale(size, ascending)(groups, importance.reshape(-1, size), self.table[tried], best)
        return {"scales": np.take_along_axis(tried, best[:, None], 1).astype(np.uint8).reshape(len(x), self.groups)}

    def scaling(self, fields: Fields) -> Scaling:
        return Scaling(self.table[fields["scales"]])


class PowerScales(ByteScales):
    """Scales 2^(byte - 128): E8M0 for levels that are twice those of E2M1. The byte 255, a NaN, is not used."""

    table = np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)
    usable = 255


class E4M3Scales(ByteScales):
    """Scales that are half of an E4M3 without sign, for levels that are twice those of E2M1. The byte 127, a NaN, is
    not used; ggml reads it as 0, and no meaning into the sign of others."""

    usable = 127

    @cached_property
    def table(self) -> Floats:  # type: ignore[override]
        byte = np.arange(256)
        exponent, mantissa = byte >> 3 & 15, (byte & 7).astype(np.float32) / 8
        raw = np.ldexp(np.where(exponent == 0, mantissa * 2, 1 + mantissa), exponent - 7) / 2
        return np.where(byte == 127, 0, raw).astype(np.float32)
