"""How is a tensor of a file read once for several readers? It is kept from the first of them to the last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from threading import Lock
from typing import Any, Final

import numpy.typing as npt


class Shelf:
    """Whole tensors for those who come soon. They are mapped from files, so that the system may still push them out."""

    def __init__(self) -> None:
        self._expected: Counter[Hashable] = Counter()
        self._kept: dict[Hashable, npt.NDArray[Any]] = {}
        self._lock = Lock()

    def expect(self, tensors: Iterable[Hashable]) -> None:
        """One more reader of each of `tensors` will come."""
        with self._lock:
            self._expected.update(tensors)

    def release(self, tensors: Iterable[Hashable]) -> None:
        """A reader that was expected needs `tensors` no longer."""
        with self._lock:
            for tensor in tensors:
                self._expected[tensor] -= 1
                if self._expected[tensor] <= 0:
                    del self._expected[tensor]
                    self._kept.pop(tensor, None)

    def get(self, tensor: Hashable, read: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
        """All rows of `tensor`, read now or before; None for one that is wanted once, and need not be kept."""
        with self._lock:
            if tensor not in self._kept and self._expected[tensor] > 1:
                self._kept[tensor] = read()
            return self._kept.get(tensor)


SHELF: Final = Shelf()
"""The one of this process: what a file holds is the same for all."""
