"""Numbers of a fixed table under a scale for each group of columns: NF4 and GGML's IQ4_NL."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from ..errors import InputError
from ..types import DType, TensorType, f16, tensor, u8
from . import bit_stream, stored_scales
from .base import AnyArray, Codes, Floats
from .ggml.types import IQ4
from .grid import Extent, Points
from .levels import LevelEncoding, Table, extent_of

NF4: Final = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""NormalFloat of 4 bits: quantiles of the normal distribution (QLoRA, arXiv 2305.14314, appendix E)."""

TABLES: Final[dict[str, tuple[float, ...]]] = {"nf4": NF4, "iq4_nl": IQ4}
_BITS: Final = 4
_LARGEST: Final = 1e18
"""Up to here no sum of weighted squares overflows an f32."""


@dataclass(frozen=True)
class TableEncoding(LevelEncoding, family="table"):
    """w = s * table[q], one s for each `group` columns (0: a row).

        table<nf4, group=64, scale=f16>       bitsandbytes' NF4; scale=i8 quantises the scales once more
        table<iq4_nl, group=32, scale=f16>    GGML's IQ4_NL

        part          shape            dtype                  stored
        codes         [..., columns]   u8, below 16           as a stream of bits for each row
        scales        [..., groups]    f16, bf16, f32, i8     as they are
        row_scales    [..., 1]         f32                    with scales of i8 only: s = row_scale * scale

    The scale is searched for the least weighted squared error (kernels/), not only the one that spans the group.
    """

    row_parts = ("row_scales",)

    table: str
    group: int = 64
    scale: DType = f16

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise InputError(f"'{self.table}' is no table of numbers", f"one of {', '.join(TABLES)}")
        stored_scales.check(self.scale, self.group)
        if self.group == stored_scales.TENSOR:
            raise InputError("a table has no scale of a whole tensor", "group=0 is one for each row")

    @cached_property
    def levels(self) -> Table:
        """What codes stand for, before scales."""
        return Table(TABLES[self.table])

    def groups(self, columns: int) -> int:
        """Groups in a row of `columns` numbers."""
        return columns // self.group if self.group > 0 else 1

    def unit(self, columns: int) -> int:
        return self.group if self.group > 0 and str(self.scale) != "i8" else columns

    def bits_per_weight(self, columns: int) -> float:
        return _BITS + stored_scales.bits_per_row(self.scale, self.groups(columns)) / columns

    def check_shape(self, shape: tuple[int, ...]) -> None:
        stored_scales.check_groups(shape, self.group, self)

    def choose(self, x: Floats, importance: Floats | None, extent: Extent | None) -> Points:
        from . import kernels

        largest = extent_of(x).largest
        if largest > _LARGEST:
            raise InputError(f"numbers as large as {largest:.3g} do not fit {self}")
        groups = self.groups(x.shape[1])
        size = x.shape[1] // groups
        weights = np.empty((0, size), np.float32) if importance is None else importance.reshape(groups, size)
        ends = self.levels.ascending[0], self.levels.ascending[-1]
        # The extreme number may come to lie on either end of the table, a little inside, or be clipped to it.
        steps = np.array([end * part for end in ends for part in (1.0, 0.92, 1.1)], np.float32)
        scale = np.empty(len(x) * groups, np.float32)
        kernels.multiple(size, self.levels.ascending)(x.reshape(-1, size), weights, steps, scale)
        return self._points(stored_scales.store(scale.reshape(len(x), groups), self.scale))

    def _points(self, parts: dict[str, AnyArray]) -> Points:
        return Points(self.levels, stored_scales.load(parts), parts)

    def split(self, codes: Codes) -> tuple[AnyArray, Points]:
        parts = dict(codes)
        return parts.pop("codes"), self._points(parts)

    def packed_types(self, shape: tuple[int, ...]) -> dict[str, TensorType]:
        *lead, columns = shape
        types = {"codes": tensor(u8, (*lead, bit_stream.packed_width(columns, _BITS)))}
        return types | stored_scales.stored_types(self.scale, tuple(lead), self.groups(columns))

    def pack(self, codes: Codes) -> Codes:
        return {**codes, "codes": bit_stream.pack(codes["codes"], _BITS)}

    def unpack(self, packed: Codes, columns: int) -> Codes:
        stored_scales.check_finite(packed, self)
        return {**packed, "codes": bit_stream.unpack(packed["codes"], _BITS, columns)}

    def arguments(self) -> tuple[str, ...]:
        return self.table, stored_scales.group_text(self.group), f"scale={self.scale}"

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> TableEncoding:
        if len(arguments) != 3:
            raise ValueError("it needs three arguments: a table, group=N, scale=DTYPE")
        group, scale = stored_scales.parse_group(arguments[1]), stored_scales.parse_scale(arguments[2])
        try:
            return cls(arguments[0], group, scale)
        except InputError as error:
            raise ValueError(error.message) from None
