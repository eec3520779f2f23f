"""How does an encoded weight become the tensors of a layout, and they an encoded weight? As recipes, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

from ..encodings import Codes
from ..errors import InputError
from ..types import TensorType
from ..weights import Recipe, WeightSymbol, static_shape
from .base import AnyArray, Layout, Tensors


class Packing:
    """The tensors of one encoded weight, made together when the first is asked for, each given out once."""

    def __init__(self, source: Recipe, layout: Layout) -> None:
        self._source, self._layout = source, layout
        self._waiting: Tensors = {}
        self._lock = Lock()

    def take(self, part: str) -> AnyArray:
        """The tensor with this suffix; the last one frees the memory."""
        with self._lock:
            if part not in self._waiting:
                kind = self._source.type
                assert kind.encoding is not None
                codes = self._source.codes(0, self._source.row_count)
                self._waiting = self._layout.pack(kind.encoding, static_shape(kind), codes)
            return self._waiting.pop(part)


@dataclass(frozen=True, eq=False)
class LaidOut(Recipe, text_name=""):
    """One tensor, with suffix `part`, of an encoded weight in a layout. Only for writing: IR text cannot hold it."""

    of: TensorType
    part: str
    packing: Packing

    @property
    def type(self) -> TensorType:
        return self.of

    @property
    def row_local(self) -> bool:
        return False

    def rows(self, start: int, stop: int) -> AnyArray:
        found = self.packing.take(self.part)
        return found if found.ndim == 0 else found[start:stop]


def laid_out(module: str, recipe: Recipe, layout: Layout) -> list[WeightSymbol]:
    """The tensors of the encoded matrix of `module` in `layout`. Raises InputError where the layout cannot hold it."""
    encoding, shape = recipe.type.encoding, static_shape(recipe.type)
    assert encoding is not None
    reason = layout.refusal(encoding, shape)
    if reason:
        raise InputError(f"{module}: {reason}")
    packing = Packing(recipe, layout)
    kinds = layout.types(encoding, shape)
    return [WeightSymbol(f"{module}.{part}", LaidOut(kind, part, packing)) for part, kind in kinds.items()]


@dataclass(frozen=True)
class Unpack(Recipe):
    """The encoded matrix behind the tensors `sources` of the layout called `layout`, in the layout's order."""

    of: TensorType
    layout: str
    sources: tuple[Recipe, ...]

    @property
    def type(self) -> TensorType:
        return self.of

    @property
    def row_local(self) -> bool:
        return False

    def codes(self, start: int, stop: int) -> Codes:
        from . import LAYOUTS

        if self.layout not in LAYOUTS:
            raise InputError(f"there is no layout called '{self.layout}'", f"one of {', '.join(LAYOUTS)}")
        layout, encoding, shape = LAYOUTS[self.layout], self.of.encoding, static_shape(self.of)
        assert encoding is not None
        tensors = dict(zip(layout.types(encoding, shape), (source.read() for source in self.sources)))
        codes = layout.unpack(encoding, shape, tensors)
        # As stored codes are: what no such encoding has is refused.
        checked = encoding.unpack(encoding.pack(codes), shape[-1])
        return {part: values[start:stop] for part, values in checked.items()}

    def rows(self, start: int, stop: int) -> AnyArray:
        assert self.of.encoding is not None
        return self.of.encoding.decode(self.codes(start, stop))
