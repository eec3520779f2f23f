"""How numbers are stored in fewer bits: an encoding turns a matrix into arrays of codes and scales, and back, exactly.

An encoding is the element of a tensor type: `q<int4, sym, group=32, scale=f16>[4096, 4096]`. Groups run along the last
axis (the input features of a weight matrix), so rows can be encoded and decoded independently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .types import DType, f32

if TYPE_CHECKING:
    import numpy as np

Codes: TypeAlias = "Mapping[str, np.ndarray]"
"""The stored arrays of an encoded tensor by part name ("codes", "scales", "zeros" ...). The first axis of every part is
the first axis of the tensor, so rows of parts are rows of the tensor."""


@dataclass(frozen=True)
class Encoding(ABC):
    """Base of all encodings. Frozen dataclasses: equal parameters are equal encodings."""

    @property
    def decoded(self) -> DType:
        """The dtype of decoded numbers."""
        return f32

    @abstractmethod
    def bits_per_weight(self, columns: int) -> float:
        """Stored bits per number, scales included, for rows of `columns` numbers."""

    @abstractmethod
    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise InputError, naming the sizes, if a tensor of this shape cannot be encoded."""

    @abstractmethod
    def encode(self, rows: np.ndarray, importance: np.ndarray | None = None) -> Codes:
        """Encode rows: f32[rows, columns]; `importance`: f32[columns], weights of the squared error."""

    @abstractmethod
    def decode(self, codes: Codes) -> np.ndarray:
        """The numbers that `codes` stand for: f32[rows, columns]."""

    @abstractmethod
    def __str__(self) -> str:
        """The IR text, for example `q<int4, sym, group=32, scale=f16>`."""
