"""How are symbolic sizes computed in a network? With shape, slice and elementwise layers on i64 shape tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from irlab.backends.tensorrt.library import ITensor, load
from irlab.dims import Size
from irlab.ir import Value
from irlab.size_table import SizeTable

if TYPE_CHECKING:
    from irlab.backends.tensorrt.emitter import Emitter

_OPERATIONS: Final = {
    "add": "SUM", "sub": "SUB", "mul": "PROD", "min": "MIN", "max": "MAX", "floordiv": "FLOOR_DIV",
}  # fmt: skip


class LayerSizes(SizeTable[ITensor]):
    """The size table of a network."""

    def __init__(self, emitter: Emitter) -> None:
        super().__init__()
        self._emitter = emitter

    def ints(self, *numbers: int) -> ITensor:
        return self._emitter.ints(*numbers)

    def measured(self, value: Value, axis: int) -> ITensor:
        e = self._emitter
        shape = e.memo(("shape of", value), lambda: e.tensor("shape", e[value]))
        return e.tensor("slice", shape, (axis,), (1,), (1,))

    def binary(self, operation: str, a: ITensor, b: ITensor) -> ITensor:
        e, operations = self._emitter, load().ElementWiseOperation
        if operation == "mod":
            whole = self.binary("mul", self.binary("floordiv", a, b), b)
            return self.binary("sub", a, whole)
        return e.tensor("elementwise", a, b, getattr(operations, _OPERATIONS[operation]))

    def joined(self, parts: list[ITensor]) -> ITensor:
        layer = self._emitter.add("concatenation", parts)
        layer.axis = 0
        return layer.get_output(0)

    def memo(self, key: tuple[object, ...], make: Callable[[], ITensor]) -> ITensor:
        return self._emitter.memo(key, make)

    def scalar(self, size: Size) -> ITensor:
        """An i64 of rank 0 that holds `size`."""
        import numpy as np

        from irlab.types import i64

        e = self._emitter
        if isinstance(size, int):
            return e.array(np.array(size, np.int64), i64)
        return e.memo(("scalar", size), lambda: e.tensor("squeeze", self.size(size), e.ints(0)))
