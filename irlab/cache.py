"""Where do long computations leave what they computed, so that it is there when they run again?

Files are named by what they depend on (fingerprint.py), appear whole or not at all, and may be deleted at any time:
what is missing is computed again. Beyond IRLAB_CACHE_SIZE (64GB) the results that were used least recently go, but none
of the last hour.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .encodings import parse_encoding
from .errors import InputError
from .options import parse_bytes
from .store import stored, write_weights
from .types import DTYPES, TensorType, tensor
from .weights import Array, Cached, WeightSymbol
from .weights.recipe import AnyArray
from .weights.safetensors import open_safetensors


def default_directory() -> Path:
    """IRLAB_CACHE if it is set, else `irlab` where this system keeps caches."""
    given = os.environ.get("IRLAB_CACHE")
    if given:
        return Path(given)
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "irlab" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "irlab"


@dataclass(frozen=True)
class Shelf:
    """The results of one computation, item by item, in a directory that is named by its fingerprint.

    An item is some weights by name, encoded or plain, and a JSON-like note.
    """

    directory: Path

    @classmethod
    def open(cls, cache: Path, kind: str, key: str) -> Shelf:
        """The shelf of the computation `key`, made if it is not there. Raises InputError where that is impossible."""
        directory = cache / kind / key
        try:
            if not directory.is_dir():
                trim(cache, size_limit())
            directory.mkdir(parents=True, exist_ok=True)
            os.utime(directory)
            _in_use.add(directory)
        except OSError as error:
            reason = f"the cache {directory} cannot be made: {error.strerror}"
            raise InputError(reason, "choose another with --cache-dir") from None
        return cls(directory)

    def file(self, item: str) -> Path:
        return self.directory / f"{item}.safetensors"

    def has(self, item: str) -> bool:
        """Whether `item` was computed and kept."""
        return self.file(item).is_file()

    def put(self, item: str, symbols: Sequence[WeightSymbol], note: Mapping[str, Any] = {}, jobs: int = 1) -> None:
        """Keep the values of `symbols` and `note`; replaces what was there, whole or not at all."""
        types = {symbol.name: [str(symbol.type.element), list(symbol.type.shape)] for symbol in symbols}
        temporary = self.directory / f".{item}.{uuid.uuid4().hex[:8]}.partial"
        try:
            write_weights(symbols, temporary, jobs, {"types": json.dumps(types), "note": json.dumps(note)})
            os.replace(temporary, self.file(item))
        finally:
            temporary.unlink(missing_ok=True)

    def put_arrays(self, item: str, arrays: Mapping[str, AnyArray], note: Mapping[str, Any] = {}) -> None:
        """Keep arrays by name."""
        kinds = {name: tensor(_dtype_name(array), array.shape) for name, array in arrays.items()}
        self.put(item, [WeightSymbol(name, Array(kinds[name], array)) for name, array in arrays.items()], note)

    def note(self, item: str) -> dict[str, Any]:
        """The note that was kept with `item`."""
        found: dict[str, Any] = json.loads(open_safetensors(self.file(item)).metadata["note"])
        return found

    def symbols(self, item: str) -> dict[str, WeightSymbol]:
        """The weights of `item` by name, read from the file when they are asked for."""
        file = self.file(item)
        types = json.loads(open_safetensors(file).metadata["types"])
        return {name: stored(name, _type(*text), file, Cached) for name, text in types.items()}


_in_use: set[Path] = set()
"""The shelves that this process has opened: it may read them to its end."""

_RECENT_SECONDS: Final = 3600
"""Another process may be at work on what was touched since then."""


def size_limit() -> int:
    """The bytes that the cache may take: IRLAB_CACHE_SIZE ("20GB"), or 64 GB. Raises InputError for what is no size."""
    text = os.environ.get("IRLAB_CACHE_SIZE", "64GB")
    try:
        return parse_bytes(text)
    except ValueError:
        raise InputError(f"IRLAB_CACHE_SIZE={text} is no size", "write 20GB") from None


def trim(cache: Path, limit_bytes: int, now: float | None = None) -> None:
    """Delete the shelves that were used least recently, but none in use, until all take at most `limit_bytes`."""
    shelves = []
    for directory in cache.glob("*/*/"):
        with contextlib.suppress(OSError):  # another process may delete it
            files = list(directory.iterdir())
            used = max(entry.stat().st_mtime for entry in (directory, *files))
            shelves.append((used, sum(file.stat().st_size for file in files), directory))
    total = sum(size for _, size, _ in shelves)
    for used, size, directory in sorted(shelves):
        if total <= limit_bytes:
            return
        if directory not in _in_use and used < (time.time() if now is None else now) - _RECENT_SECONDS:
            shutil.rmtree(directory, ignore_errors=True)
            total -= size


def _dtype_name(array: AnyArray) -> str:
    return f"{'f' if array.dtype.kind == 'f' else 'i'}{8 * array.dtype.itemsize}"


def _type(element: str, shape: list[int]) -> TensorType:
    return tensor(DTYPES.get(element) or parse_encoding(element), tuple(shape))
