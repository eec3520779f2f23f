"""What is a recipe? A value that knows the type of a tensor and makes rows of it on demand."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..dims import Dim
from ..encodings import Codes
from ..errors import IRError
from ..types import DType, TensorType

AnyArray = npt.NDArray[Any]

_NUMPY_NAME = {"bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "bool": "bool"}
_NUMPY_STEM = {"f": "float", "i": "int", "u": "uint"}


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The NumPy dtype that holds `dtype`; ml_dtypes supplies the ones NumPy lacks."""
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

    Recipes describe themselves: `Recipe.registry` maps the name used in IR text (the class name in lower case, or the
    keyword `text_name`) to the class, and the dataclass fields are its arguments. A field is a Recipe, TensorType,
    DType, Encoding, str, int, float, bool, a Path (printed relative to the IR file), or a tuple of one of these.
    """

    registry: ClassVar[dict[str, type[Recipe]]] = {}
    text_name: ClassVar[str] = ""
    costly: ClassVar[bool] = False
    """Whether rows take much longer to make than to read: outputs of one command share what is (compute_once.py)."""

    def __init_subclass__(cls, text_name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.text_name = cls.__name__.lower() if text_name is None else text_name
        if cls.text_name:
            Recipe.registry[cls.text_name] = cls
        # Types are asked for at every level of a recipe: uncached, a chain of n would cost 2^n.
        own = cls.__dict__.get("type")
        if isinstance(own, property) and own.fget is not None:
            cached = cached_property(own.fget)
            cached.__set_name__(cls, "type")
            setattr(cls, "type", cached)  # noqa: B010

    @property
    @abstractmethod
    def type(self) -> TensorType:
        """The type of the tensor; its sizes are known."""

    @property
    def inputs(self) -> tuple[Recipe, ...]:
        """The recipes this one derives from."""
        found: list[Recipe] = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            found += [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Recipe)]
        return tuple(found)

    @property
    def row_local(self) -> bool:
        """Whether a few rows can be made without making all of some tensor."""
        return all(source.row_local for source in self.inputs)

    @abstractmethod
    def rows(self, start: int, stop: int) -> AnyArray:
        """Elements [start:stop] along the first axis, as an array of the type's dtype (decoded where encoded), not to
        be written to. A tensor of rank 0 has one row."""

    def codes(self, start: int, stop: int) -> Codes:
        """The codes of rows [start:stop], for a recipe whose type is encoded."""
        raise IRError(f"a tensor of type {self.type} has no codes")

    @property
    def row_count(self) -> int:
        """The size of the first axis; 1 for rank 0."""
        shape = static_shape(self.type)
        return shape[0] if shape else 1

    @property
    def size_bytes(self) -> int:
        """The bytes that the tensor takes as stored: its codes, if it is encoded."""
        size = self.type.size_bytes
        assert isinstance(size, int), "sizes of weights are known"
        return size

    def read(self) -> AnyArray:
        """The whole tensor. For tensors known to be small, or one at a time."""
        return self.rows(0, self.row_count).reshape(static_shape(self.type))

    def chunks(self, max_bytes: int = 32 << 20) -> Iterator[tuple[int, int]]:
        """Row ranges that cover the tensor, each of at most `max_bytes` as f32 (but at least one row). A tensor that
        is not row-local comes in one range: several would each make all of it."""
        rows = self.row_count
        step = max(1, max_bytes // max(1, 4 * math.prod(static_shape(self.type)[1:])))
        if self.type.encoding is not None:
            step = -(-step // self.type.encoding.row_block) * self.type.encoding.row_block
        if not self.row_local:
            step = max(1, rows)
        for start in range(0, rows, step):
            yield start, min(rows, start + step)


def rebuilt(recipe: Recipe, change: Callable[[Recipe], Recipe | None]) -> Recipe:
    """`recipe` with what `change` gives in place of it, or of the recipes it derives from; None leaves one alone."""
    new = change(recipe)
    if new is not None:
        return new
    changes: dict[str, object] = {}
    for spec in fields(recipe):  # type: ignore[arg-type]
        old = getattr(recipe, spec.name)
        if isinstance(old, Recipe):
            made: object = rebuilt(old, change)
        elif isinstance(old, tuple) and any(isinstance(item, Recipe) for item in old):
            items = tuple(rebuilt(item, change) if isinstance(item, Recipe) else item for item in old)
            made = old if all(a is b for a, b in zip(items, old)) else items
        else:
            continue
        if made is not old:
            changes[spec.name] = made
    return replace(recipe, **changes) if changes else recipe  # type: ignore[type-var]


@dataclass(frozen=True)
class WeightSymbol:
    """A named weight. Two uses of one symbol are a tied weight."""

    name: str
    recipe: Recipe

    @property
    def type(self) -> TensorType:
        return self.recipe.type

    @property
    def size_bytes(self) -> int:
        """The bytes that the weight takes as stored."""
        return self.recipe.size_bytes
