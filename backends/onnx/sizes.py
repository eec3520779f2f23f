"""How are symbolic sizes computed in ONNX? With Shape and arithmetic nodes on i64 vectors of length 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from irlab.dims import Size
from irlab.ir import Value
from irlab.size_table import SizeTable

if TYPE_CHECKING:
    from irlab.backends.onnx.emitter import Emitter

_OPERATIONS: Final = {"add": "Add", "sub": "Sub", "mul": "Mul", "min": "Min", "max": "Max", "mod": "Mod"}


class NodeSizes(SizeTable[str]):
    """The size table of an ONNX graph; a value is the name of a tensor."""

    def __init__(self, emitter: Emitter) -> None:
        super().__init__()
        self._emitter = emitter

    def ints(self, *numbers: int) -> str:
        return self._emitter.ints(*numbers)

    def measured(self, value: Value, axis: int) -> str:
        return self._emitter.node("Shape", self._emitter[value], start=axis, end=axis + 1)

    def binary(self, operation: str, a: str, b: str) -> str:
        e = self._emitter
        if operation == "floordiv":
            # Div rounds toward zero; taking the remainder off first makes it floor division.
            return e.node("Div", e.node("Sub", a, e.node("Mod", a, b)), b)
        return e.node(_OPERATIONS[operation], a, b)

    def joined(self, parts: list[str]) -> str:
        return self._emitter.node("Concat", *parts, axis=0)

    def memo(self, key: tuple[object, ...], make: Callable[[], str]) -> str:
        return self._emitter.memo(key, make)

    def scalar(self, size: Size) -> str:
        """The name of an i64 of rank 0 that holds `size`."""
        import numpy as np

        e = self._emitter
        if isinstance(size, int):
            return e.array(np.array(size, np.int64))
        return e.memo(("scalar", size), lambda: e.node("Squeeze", self.size(size), e.ints(0)))
