"""How does an encoded weight become the tensors of a layout? As recipes, one weight at a time (and back:
irlab/weights/unpack.py)."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

from ..types import TensorType
from ..weights import Recipe, WeightSymbol, static_shape
from .base import AnyArray, Form, Tensors


class Packing:
    """The tensors of one encoded weight, made together when the first is asked for, each given out once."""

    def __init__(self, source: Recipe, form: Form) -> None:
        self._source, self._form = source, form
        self._waiting: Tensors = {}
        self._lock = Lock()

    def take(self, part: str) -> AnyArray:
        """The tensor with this suffix; the last one frees the memory."""
        with self._lock:
            if part not in self._waiting:
                kind = self._source.type
                assert kind.encoding is not None
                codes = self._source.codes(0, self._source.row_count)
                self._waiting = self._form.pack(kind.encoding, static_shape(kind), codes)
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


def laid_out(module: str, recipe: Recipe, form: Form) -> list[WeightSymbol]:
    """The tensors of the encoded matrix of `module` in `form`, which holds it."""
    encoding, shape = recipe.type.encoding, static_shape(recipe.type)
    assert encoding is not None
    packing = Packing(recipe, form)
    return [
        WeightSymbol(f"{module}.{part}", LaidOut(kind, part, packing))
        for part, kind in form.types(encoding, shape).items()
    ]
