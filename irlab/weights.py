"""Lazy weights: a weight is a name, a type and a recipe; a recipe says how rows of it are made when someone asks.

Nothing here holds a model: passes change recipes, backends ask for a few rows at a time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .dims import Dim
from .errors import IRError
from .types import DType, TensorType

if TYPE_CHECKING:
    import numpy as np

    from .encodings import Codes


_NUMPY_NAME = {"bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "bool": "bool"}
_NUMPY_STEM = {"f": "float", "i": "int", "u": "uint"}


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The NumPy dtype that holds `dtype`; ml_dtypes supplies the ones NumPy lacks."""
    import ml_dtypes
    import numpy as np

    name = _NUMPY_NAME.get(dtype.name) or _NUMPY_STEM[dtype.name[0]] + dtype.name[1:]
    return np.dtype(getattr(ml_dtypes, name, name))


def static_shape(type: TensorType) -> tuple[int, ...]:
    """The shape of a weight: all sizes known. Raises IRError for a symbolic one."""
    if any(isinstance(d, Dim) for d in type.shape):
        raise IRError(f"a weight has the symbolic type {type}")
    return type.shape  # type: ignore[return-value]


class Recipe(ABC):
    """How a tensor is made. Recipes are frozen dataclasses: values, shared freely.

    Every recipe gives plain numbers by rows; one whose type is encoded gives codes by rows too.
    """

    @property
    @abstractmethod
    def type(self) -> TensorType:
        """The type of the tensor; its sizes are known."""

    @property
    def inputs(self) -> tuple[Recipe, ...]:
        """The recipes this one derives from."""
        return ()

    @abstractmethod
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Elements [start:stop] along the first axis, as an array of the type's dtype (decoded where encoded).
        A tensor of rank 0 has one row."""

    def codes(self, start: int, stop: int) -> Codes:
        """The codes of rows [start:stop], for a recipe whose type is encoded."""
        raise IRError(f"a tensor of type {self.type} has no codes")

    def read(self) -> np.ndarray:
        """The whole tensor. For tensors known to be small, or one at a time."""
        shape = static_shape(self.type)
        return self.rows(0, shape[0] if shape else 1).reshape(shape)

    def chunks(self, max_bytes: int = 32 << 20) -> Iterator[tuple[int, int]]:
        """Row ranges that cover the tensor, each of at most `max_bytes` as f32 (but at least one row)."""
        shape = static_shape(self.type)
        rows = shape[0] if shape else 1
        step = max(1, max_bytes // max(1, 4 * math.prod(shape[1:])))
        for start in range(0, rows, step):
            yield start, min(rows, start + step)


@dataclass(frozen=True)
class WeightSymbol:
    """A named weight. Two uses of one symbol are a tied weight."""

    name: str
    recipe: Recipe

    @property
    def type(self) -> TensorType:
        return self.recipe.type


@dataclass(frozen=True)
class Random(Recipe):
    """Small normal numbers (deviation 0.02) made from a seed, the same for any order of reading."""

    of: TensorType
    seed: int = 0

    @property
    def type(self) -> TensorType:
        return self.of

    def rows(self, start: int, stop: int) -> np.ndarray:
        import numpy as np

        shape = static_shape(self.of)
        row = math.prod(shape[1:])
        rows = [
            np.random.default_rng((self.seed, i)).standard_normal(row, dtype=np.float32) for i in range(start, stop)
        ]
        flat = np.stack(rows) * np.float32(0.02)
        return flat.reshape(stop - start, *shape[1:]).astype(numpy_dtype(self.of.dtype))


@dataclass(frozen=True)
class Literal(Recipe):
    """A small tensor whose numbers stand in the IR text, in row-major order."""

    of: TensorType
    values: tuple[float | int | bool, ...]

    @property
    def type(self) -> TensorType:
        return self.of

    def rows(self, start: int, stop: int) -> np.ndarray:
        import numpy as np

        shape = static_shape(self.of)
        full = np.array(self.values, dtype=numpy_dtype(self.of.dtype)).reshape(shape or (1,))
        return full[start:stop]
