"""Where do weights lie until the engine is built? In arrays that the network refers to; large ones in a scratch file.

TensorRT copies no weight before it builds, so what a network refers to must stay. Large tensors are mapped from files
that the system may push out of memory, the module's own or one that is filled by rows, so that resident memory does not
grow with the model before TensorRT's own builder takes over.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from irlab.weights import File, WeightSymbol, finite_codes, finite_rows, numpy_dtype, static_shape, stream

if TYPE_CHECKING:
    import numpy as np

    from irlab.encodings import Codes

_IN_MEMORY_BYTES: Final = 64 << 10
"""Smaller tensors are plain arrays."""


@dataclass
class ConstantStore:
    """The arrays behind a network's constants. `scratch` is the directory of the scratch file; `jobs` threads read."""

    scratch: Path | None = None
    jobs: int = 1
    weight_read: Callable[[], None] = lambda: None
    """Called after each weight."""
    arrays: dict[object, np.ndarray] = field(default_factory=dict)
    _maps: list[mmap.mmap] = field(default_factory=list)
    _file: IO[bytes] | None = None
    _end: int = 0

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array of zeros."""
        import numpy as np

        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < _IN_MEMORY_BYTES or self.scratch is None:
            return np.zeros(shape, dtype)
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.scratch)  # noqa: SIM115 - lives as long as the arrays
        start, length = self._end, -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._end += length
        # Writing claims the disk now: a full one is an error here, and not a fault in the builder later.
        self._file.seek(start)
        for written in range(0, length, 1 << 20):
            self._file.write(b"\0" * min(1 << 20, length - written))
        self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), length, offset=start)
        self._maps.append(mapped)
        return np.frombuffer(mapped, dtype, math.prod(shape)).reshape(shape)

    def plain(self, symbol: WeightSymbol) -> np.ndarray:
        """The numbers of a weight in its own shape and dtype. A file was written for the network, and its numbers were
        checked then: it is mapped and not copied."""

        def make() -> np.ndarray:
            if isinstance(symbol.recipe, File):
                self.weight_read()
                return symbol.recipe.read()
            array = self.allocate(static_shape(symbol.type), numpy_dtype(symbol.type.dtype))
            for chunk in stream([symbol], finite_rows, jobs=self.jobs):
                rows = array if array.ndim else array.reshape(1)
                rows[chunk.start : chunk.stop] = chunk.value.reshape(rows[chunk.start : chunk.stop].shape)
            self.weight_read()
            return array

        return self.once(("plain", symbol.name, str(symbol.type)), make)

    def encoded(
        self,
        symbol: WeightSymbol,
        part: str,
        shape: tuple[int, ...],
        dtype: Any,
        convert: Callable[[Codes], np.ndarray],
    ) -> np.ndarray:
        """An array made from the codes of a weight: `convert` makes some rows of it from those of the weight."""

        def make() -> np.ndarray:
            array = self.allocate(shape, dtype)
            for chunk in stream([symbol], lambda *span: convert(finite_codes(*span)), jobs=self.jobs):
                array[chunk.start : chunk.stop] = chunk.value
            if part == "codes":
                self.weight_read()
            return array

        return self.once((part, symbol.name, str(symbol.type)), make)

    def once(self, key: object, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array known by `key`, made when first asked for."""
        if key not in self.arrays:
            self.arrays[key] = make()
        return self.arrays[key]

    def close(self) -> None:
        """Let the arrays and the scratch file go; no network may refer to them any more."""
        self.arrays.clear()
        for mapped in self._maps:
            with suppress(BufferError):  # some array still looks into it; the file goes with the process
                mapped.close()
        if self._file is not None:
            self._file.close()
