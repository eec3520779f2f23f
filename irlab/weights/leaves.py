"""Where do numbers come from in the first place? Files, memory, IR text, and random generators."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..encodings import Codes
from ..errors import InputError, IRError
from ..types import TensorType
from .recipe import AnyArray, Recipe, WeightSymbol, numpy_dtype, static_shape
from .safetensors import open_safetensors
from .shelf import SHELF


@dataclass(frozen=True)
class FileTensor(Recipe, text_name=""):
    """Base of the tensors that lie in files: the tensor `name` of the file `path`, which must be of type `of`.

    `path` is absolute or relative to the current directory; IR text names files relative to itself. Making one touches
    nothing: a missing file, or a tensor of another type, is an InputError when rows are asked for.
    """

    path: Path
    name: str
    of: TensorType

    @property
    def type(self) -> TensorType:
        return self.of

    @abstractmethod
    def read_rows(self, start: int, stop: int) -> AnyArray:
        """Rows [start:stop] as the file has them, mapped. Raises InputError."""

    def kept_rows(self, start: int, stop: int) -> AnyArray:
        """As `read_rows`, of the whole tensor where several readers want it (shelf.py)."""
        kept = SHELF.get(self, lambda: self.read_rows(0, self.row_count))
        return self.read_rows(start, stop) if kept is None else kept[start:stop]

    def require_type(self, found: TensorType | None) -> None:
        """Raise InputError where the file has a tensor of another type under this name."""
        if found is not self.of:
            raise InputError(f"{self.path}: tensor '{self.name}' is {found}, {self.of} was expected")


@dataclass(frozen=True)
class File(FileTensor):
    """The tensor `name` of a safetensors file, which must be of type `of`; rows are mapped, not loaded. IR text names
    files relative to itself."""

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.kept_rows(start, stop)

    def read_rows(self, start: int, stop: int) -> AnyArray:
        file = open_safetensors(self.path)
        self.require_type(file.entry(self.name).type)
        return file.read(self.name, start, stop).reshape(stop - start, *static_shape(self.of)[1:])


@dataclass(frozen=True)
class Cached(File, text_name=""):
    """A tensor that was computed and lies in a file of the cache, which may be emptied: outputs get copies of it, and
    IR text cannot hold it."""


@dataclass(frozen=True, eq=False)
class Array(Recipe, text_name=""):
    """Numbers in memory: `values` must not change afterwards. IR text cannot hold them, an .irlab directory can.

    An Array is equal only to itself.
    """

    of: TensorType
    values: AnyArray

    def __post_init__(self) -> None:
        if self.values.shape != static_shape(self.of) or self.values.dtype != numpy_dtype(self.of.dtype):
            raise IRError(f"{self.values.dtype}{list(self.values.shape)} numbers were given as a {self.of}")

    @property
    def type(self) -> TensorType:
        return self.of

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.values.reshape(self.row_count, *static_shape(self.of)[1:])[start:stop]


@dataclass(frozen=True)
class Random(Recipe):
    """Small normal numbers (deviation 0.02) made from a seed, the same for any order of reading."""

    of: TensorType
    seed: int = 0

    @property
    def type(self) -> TensorType:
        return self.of

    def rows(self, start: int, stop: int) -> AnyArray:
        shape = static_shape(self.of)
        row = math.prod(shape[1:])
        values = np.empty((stop - start, row), np.float32)
        for i in range(start, stop):
            np.random.default_rng((self.seed, i)).standard_normal(row, dtype=np.float32, out=values[i - start])
        values *= np.float32(0.02)
        return values.reshape(stop - start, *shape[1:]).astype(numpy_dtype(self.of.dtype), copy=False)


@dataclass(frozen=True)
class Pending(Recipe, text_name=""):
    """Numbers that are still to be computed: those of `source`, which has their type, stand in for them. Like what is
    computed, IR text cannot hold them."""

    source: Recipe

    @property
    def type(self) -> TensorType:
        return self.source.type

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.source.rows(start, stop)

    def codes(self, start: int, stop: int) -> Codes:
        return self.source.codes(start, stop)


def pending(symbols: Mapping[str, WeightSymbol]) -> dict[str, WeightSymbol]:
    """`symbols` as they are of a plan in which they will be computed."""
    return {name: WeightSymbol(symbol.name, Pending(symbol.recipe)) for name, symbol in symbols.items()}


@dataclass(frozen=True)
class Literal(Recipe):
    """A small tensor whose numbers stand in the IR text, in row-major order."""

    of: TensorType
    values: tuple[float | int | bool, ...]

    def __post_init__(self) -> None:
        if len(self.values) != math.prod(static_shape(self.of)):
            raise IRError(f"{len(self.values)} numbers were given for a {self.of}")

    @property
    def type(self) -> TensorType:
        return self.of

    def rows(self, start: int, stop: int) -> AnyArray:
        full = np.array(self.values, dtype=numpy_dtype(self.of.dtype))
        return full.reshape(self.row_count, *static_shape(self.of)[1:])[start:stop]
