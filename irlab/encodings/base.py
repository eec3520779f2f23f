"""What is an encoding? A way to store rows of numbers as arrays of codes, with a name in IR text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..types import DType, TensorType, f32

if TYPE_CHECKING:
    from .grid import Extent, Grid

AnyArray = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

Codes: TypeAlias = Mapping[str, AnyArray]
"""The arrays of an encoded tensor by part name ("codes", "scales", "zeros" ...). The leading axes of every part are
those of the tensor, so rows of parts are rows of the tensor."""


@dataclass(frozen=True)
class Encoding(ABC):
    """Base of all encodings. Frozen dataclasses: equal parameters are equal encodings.

    A subclass names its text form by the keyword `family`: `class IntegerEncoding(Encoding, family="q")` is `q<...>`.
    """

    families: ClassVar[dict[str, type[Encoding]]] = {}
    family: ClassVar[str] = ""

    def __init_subclass__(cls, family: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if family:
            cls.family = family
            Encoding.families[family] = cls

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

    @property
    def tensor_wide(self) -> bool:
        """Whether a parameter belongs to a whole tensor, so that `encode` must be told its extent."""
        return False

    @property
    def row_block(self) -> int:
        """How many rows are encoded and packed together; codes are cut and joined by single rows all the same."""
        return 1

    @abstractmethod
    def encode(self, rows: AnyArray, importance: Floats | None = None, extent: Extent | None = None) -> Codes:
        """Encode rows: floats[..., columns] of any width; `importance`: f32[columns], weights of the squared error;
        `extent`: of the tensor that the rows are of (of the rows where it is None), read if `tensor_wide`.
        Raises InputError for NaN, infinities, and numbers that the scales cannot reach."""

    def grid(self, rows: int, columns: int, importance: Floats | None = None, extent: Extent | None = None) -> Grid:
        """A grid without parameters yet, for a matrix [rows, columns]: see grid.py. Raises InputError where codes
        stand for several numbers at once."""
        raise InputError(f"{self} has no grid of single numbers to round columns to", "use method=rtn")

    def fit(self, rows: Floats, importance: Floats | None = None, extent: Extent | None = None) -> Grid:
        """The grid whose parameters are all chosen from `rows`: f32[rows, columns]."""
        grid = self.grid(rows.shape[0], rows.shape[1], importance, extent)
        grid.fit(0, rows)
        return grid

    @abstractmethod
    def decode(self, codes: Codes) -> Floats:
        """The numbers that `codes` stand for: f32[..., columns]."""

    @abstractmethod
    def packed_types(self, shape: tuple[int, ...]) -> dict[str, TensorType]:
        """The types of the parts as irlab stores them in files, by part name, for a tensor of this shape."""

    @abstractmethod
    def pack(self, codes: Codes) -> Codes:
        """`codes` in the form of `packed_types`."""

    @abstractmethod
    def unpack(self, packed: Codes, columns: int) -> Codes:
        """The inverse of `pack`, for rows of `columns` numbers. Raises InputError for codes out of range."""

    @abstractmethod
    def arguments(self) -> tuple[str, ...]:
        """What stands between the angle brackets of the text."""

    @classmethod
    @abstractmethod
    def from_arguments(cls, arguments: list[str]) -> Encoding:
        """The encoding with these arguments, in the order of `arguments`; raises ValueError with a reason."""

    def __str__(self) -> str:
        return f"{self.family}<{', '.join(self.arguments())}>"


def parse_encoding(text: str) -> Encoding:
    """The encoding written as `text`, for example `q<int4, sym, group=32, scale=f16>`; raises InputError."""
    head, bracket, rest = text.strip().partition("<")
    cls = Encoding.families.get(head.strip())
    if cls is None or not bracket or not rest.endswith(">"):
        known = ", ".join(f"{name}<...>" for name in Encoding.families)
        raise InputError(f"'{text}' is not an encoding", f"known forms: {known}")
    try:
        return cls.from_arguments([argument.strip() for argument in rest[:-1].split(",")])
    except ValueError as error:
        raise InputError(f"'{text}' is not an encoding: {error}") from None
