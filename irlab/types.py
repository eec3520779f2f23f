"""Element types and tensor types, interned so that equal types are the same object.

    >>> tensor("bf16", (2, 3)) is tensor("bf16", (2, 3))
    True
    >>> str(tensor("f32", (symbol("batch"), 4)))
    'f32[batch, 4]'

A tensor's *element* is a `DType` (plain numbers) or an `Encoding` (numbers stored in fewer bits, see encodings.py).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from .dims import Dim, Size, floordiv, product

if TYPE_CHECKING:
    from .encodings import Encoding

Shape: TypeAlias = "tuple[Size, ...]"


class Kind(Enum):
    """What arithmetic a dtype takes part in."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"


class DType:
    """A plain element type. `bits` is its size in memory; the instances of this module are the only ones."""

    __slots__ = ("bits", "is_float", "is_int", "kind", "name")

    def __init__(self, name: str, bits: int, kind: Kind) -> None:
        self.name, self.bits, self.kind = name, bits, kind
        self.is_float, self.is_int = kind is Kind.FLOAT, kind is Kind.INT

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__

    def __reduce__(self) -> str:
        return self.name


bool_ = DType("bool", 8, Kind.BOOL)
i8, i16, i32, i64 = (DType(f"i{n}", n, Kind.INT) for n in (8, 16, 32, 64))
u8, u16, u32, u64 = (DType(f"u{n}", n, Kind.INT) for n in (8, 16, 32, 64))
f16, f32, f64 = (DType(f"f{n}", n, Kind.FLOAT) for n in (16, 32, 64))
bf16 = DType("bf16", 16, Kind.FLOAT)
f8e4m3 = DType("f8e4m3", 8, Kind.FLOAT)
f8e5m2 = DType("f8e5m2", 8, Kind.FLOAT)

DTYPES: dict[str, DType] = {
    d.name: d for d in (bool_, i8, i16, i32, i64, u8, u16, u32, u64, f8e4m3, f8e5m2, f16, bf16, f32, f64)
}


def dtype(name: str | DType) -> DType:
    """The dtype called `name` ("f32", "bf16", "i64", "bool" ...); raises KeyError."""
    return name if isinstance(name, DType) else DTYPES[name]


class TensorType:
    """An element and a shape. Made by `tensor`; compare with `is`."""

    __slots__ = ("dtype", "element", "encoding", "rank", "shape")
    element: DType | Encoding
    shape: Shape
    rank: int
    dtype: DType
    """The numbers as seen by arithmetic: an encoded tensor's are those that decoding yields."""
    encoding: Encoding | None

    @property
    def size(self) -> Size:
        """The number of elements."""
        return product(self.shape)

    @property
    def size_bytes(self) -> Size:
        """The bytes of a tensor of this type, of an encoded one as stored; symbolic where its sizes are."""
        if self.encoding is None:
            return floordiv(self.size * self.dtype.bits, 8)
        *rows, columns = self.shape
        assert isinstance(columns, int)
        return floordiv(product(tuple(rows)) * round(columns * self.encoding.bits_per_weight(columns)), 8)

    @property
    def is_static(self) -> bool:
        return not any(isinstance(d, Dim) for d in self.shape)

    def with_shape(self, shape: Shape) -> TensorType:
        return tensor(self.element, shape)

    def with_element(self, element: DType | Encoding | str) -> TensorType:
        return tensor(element, self.shape)

    def __str__(self) -> str:
        return f"{self.element}[{', '.join(map(str, self.shape))}]"

    def __repr__(self) -> str:
        return f"<{self}>"

    def __reduce__(self) -> tuple[object, ...]:
        return tensor, (self.element, self.shape)


_interned: dict[tuple[DType | Encoding, Shape], TensorType] = {}


def tensor(element: DType | Encoding | str, shape: Shape) -> TensorType:
    """The tensor type of `element` (a dtype, its name, or an encoding) and `shape`."""
    key = (DTYPES[element] if isinstance(element, str) else element, shape)
    found = _interned.get(key)
    if found is None:
        found = TensorType.__new__(TensorType)
        found.element, found.shape = element, shape = key
        found.rank = len(shape)
        found.dtype = element if isinstance(element, DType) else element.decoded
        found.encoding = None if isinstance(element, DType) else element
        _interned[key] = found
    return found
