"""What does a rotary table hold? cos or sin of position times frequency, a row per position, made on demand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from irlab.types import TensorType
from irlab.weights import Recipe, as_f32, numpy_dtype
from irlab.weights.recipe import AnyArray


@dataclass(frozen=True)
class RopeTable(Recipe, text_name="ropetable"):
    """function(position * inv_freq) * scale for positions 0, 1, 2 ..., computed in f32: `of` is [positions, n]."""

    of: TensorType
    inv_freq: Recipe
    function: str
    scale: float = 1.0

    @property
    def type(self) -> TensorType:
        return self.of

    @property
    def row_local(self) -> bool:
        return True

    def rows(self, start: int, stop: int) -> AnyArray:
        positions = np.arange(start, stop, dtype=np.float32)
        angles = np.outer(positions, as_f32(self.inv_freq.read()))
        table = (np.cos if self.function == "cos" else np.sin)(angles) * np.float32(self.scale)
        return table.astype(numpy_dtype(self.of.dtype), copy=False)
