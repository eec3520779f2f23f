"""Is this the model that a recipe was made for? A digest of its configuration and its weights.

Of a small model every number counts. Of a large one names, types and some numbers of each weight: enough to tell two
trainings of one architecture apart without reading a checkpoint, and blind to an edit of a few rows. (What is cached is
named by files, fingerprint.py, and needs no such name.)
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from .errors import InputError
from .ir import Module
from .text import print_graph
from .weights import WeightSymbol, static_shape

SMALL_BYTES: Final = 512 << 20
"""Models up to this size are read whole: a second or two."""

SAMPLED: Final = 1024
"""About so many numbers of a vector are read; of a matrix, three rows."""

_VARIES: Final = frozenset({"_name_or_path", "transformers_version"})
"""What a configuration says of who saved it, and not of the model."""


def model_fingerprint(module: Module) -> str:
    """`sha256:...` of a module as it was lifted. It is the same wherever the files lie, and without the weights' files
    another one than with them."""
    digest = hashlib.sha256()
    config = module.metadata.get("config")
    if isinstance(config, dict):
        known = {key: value for key, value in config.items() if key not in _VARIES}
        digest.update(json.dumps(known, sort_keys=True, default=str).encode())
    else:
        digest.update(print_graph(module.graph).encode())
    whole = sum(symbol.size_bytes for symbol in module.weights.values()) <= SMALL_BYTES
    for name, symbol in sorted(module.weights.items()):
        digest.update(f"{name} {symbol.type}\n".encode())
        for start, stop in symbol.recipe.chunks() if whole else _some_rows(symbol):
            try:
                digest.update(symbol.recipe.rows(start, stop).tobytes())
            except InputError:
                digest.update(b"missing")
    return f"sha256:{digest.hexdigest()}"


def _some_rows(symbol: WeightSymbol) -> list[tuple[int, int]]:
    count = symbol.recipe.row_count
    if not count or not symbol.recipe.row_local:
        return []
    if len(static_shape(symbol.type)) < 2:
        return [(0, min(count, SAMPLED))]
    return [(row, row + 1) for row in sorted({0, count // 2, count - 1})]
