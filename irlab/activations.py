"""Where do the activations between layers wait? In memory, and beyond a budget in mapped files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final

import torch

MEMORY_BYTES: Final = 1 << 30


class Activations:
    """Tensors by name and batch. What exceeds `memory_bytes` goes to files below `directory` (the system's place for
    temporary files by default), which disappear with the store."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES, directory: Path | None = None) -> None:
        self._free = memory_bytes
        self._held: dict[tuple[str, int], torch.Tensor] = {}
        self._files: dict[tuple[str, int], Path] = {}
        self._directory = directory
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def __enter__(self) -> Activations:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.clear()
        if self._temporary is not None:
            self._temporary.cleanup()

    def put(self, name: str, batch: int, tensor: torch.Tensor) -> None:
        """Keep `tensor` on the CPU, or in a file."""
        key = (name, batch)
        self._forget(key)
        tensor = tensor.detach().cpu()
        if tensor.nbytes <= self._free:
            self._free -= tensor.nbytes
            self._held[key] = tensor
            return
        file = self._new_file()
        mapped = torch.from_file(str(file), shared=True, size=tensor.numel(), dtype=tensor.dtype)
        mapped.copy_(tensor.reshape(-1))
        self._held[key], self._files[key] = mapped.view(tensor.shape), file

    def get(self, name: str, batch: int) -> torch.Tensor:
        return self._held[name, batch]

    def has(self, name: str, batch: int) -> bool:
        return (name, batch) in self._held

    def drop(self, name: str) -> None:
        """Free all batches of `name`."""
        for key in [key for key in self._held if key[0] == name]:
            self._forget(key)

    @property
    def spilled(self) -> int:
        """How many tensors lie in files now."""
        return len(self._files)

    def _forget(self, key: tuple[str, int]) -> None:
        tensor = self._held.pop(key, None)
        file = self._files.pop(key, None)
        if tensor is not None and file is None:
            self._free += tensor.nbytes
        del tensor  # before the file: Windows removes no file that is mapped
        if file is not None:
            file.unlink(missing_ok=True)

    def _new_file(self) -> Path:
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(
                prefix="irlab-", dir=self._directory, ignore_cleanup_errors=True
            )
        self._count += 1
        return Path(self._temporary.name) / f"{self._count}.bin"
