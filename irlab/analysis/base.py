"""What an analysis is: facts about one weight matrix that can be merged, kept and read again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import IRError

if TYPE_CHECKING:
    import torch

A = TypeVar("A", bound="Analysis")

Doubles = npt.NDArray[np.float64]
Columns = npt.NDArray[np.intp]


class Analysis(ABC):
    """Facts about one weight matrix [out, in]. Subclasses say how they are kept: arrays by name."""

    name: ClassVar[str]

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what another one has seen."""

    @abstractmethod
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What is kept."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The inverse of `arrays`."""


class RowAnalysis(Analysis):
    """Facts about rows of activations, added as they come."""

    @classmethod
    @abstractmethod
    def empty(cls, width: int) -> Self:
        """Facts about no rows, of `width` numbers each."""

    @abstractmethod
    def add(self, x: torch.Tensor) -> None:
        """Take in f32[rows, width]."""

    @abstractmethod
    def divided(self, by: Doubles) -> Self:
        """The facts about the rows x / by; `by` is f64[width]."""

    def taken(self, columns: Columns) -> Self:
        """The facts about these columns of the rows alone. Raises IRError where that cannot be told."""
        raise IRError(f"{self.name} cannot tell of a part of the inputs")


class GradientAnalysis(Analysis):
    """Facts about gradients of the loss, which is that of tokens drawn from the predictions (gradients.py), summed over
    positions. All kinds are collected together, because a walk backwards is dear."""

    @classmethod
    @abstractmethod
    def empty(cls, rows: int, columns: int) -> Self:
        """Facts about a weight [rows, columns] that was not read."""
