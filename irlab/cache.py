"""Where do long computations leave what they computed, so that it is there when they run again?

Files are named by what they depend on (fingerprint.py), appear whole or not at all, and may be deleted at any time:
what is missing is computed again.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .encodings import parse_encoding
from .errors import InputError
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
            directory.mkdir(parents=True, exist_ok=True)
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


def _dtype_name(array: AnyArray) -> str:
    return f"{'f' if array.dtype.kind == 'f' else 'i'}{8 * array.dtype.itemsize}"


def _type(element: str, shape: list[int]) -> TensorType:
    return tensor(DTYPES.get(element) or parse_encoding(element), tuple(shape))
