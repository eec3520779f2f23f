"""What is a short name for everything that a result depends on? The same things have the same name in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .ir import Graph, Value
from .weights import Array, Cached

_TAGS = (str, int, float, bool, bytes, type(None))


def fingerprint(*things: object) -> str:
    """A hexadecimal digest of `things`: plain values, tuples, tables, arrays, dataclasses, recipes and graphs.

    A file stands for itself by path, size and time of change: checkpoints are too large to be read for a name.
    """
    digest = hashlib.sha256()
    for thing in things:
        _feed(digest, thing)
    return digest.hexdigest()[:32]


def _feed(digest: Any, thing: object) -> None:
    match thing:
        case Graph():
            _feed_graph(digest, thing)
        case Array():
            _feed(digest, str(thing.type))
            _feed(digest, thing.values)
        case Cached():
            _feed(digest, (str(thing.path), thing.name))
        case Path():
            _feed(digest, _file_state(thing))
        case np.ndarray():
            _feed(digest, (str(thing.dtype), thing.shape))
            digest.update(np.ascontiguousarray(thing).reshape(-1).view(np.uint8).data)
        case tuple() | list():
            digest.update(b"(%d" % len(thing))
            for item in thing:
                _feed(digest, item)
        case Mapping():
            _feed(digest, list(thing.items()))
        case _ if isinstance(thing, _TAGS):
            digest.update(f"{type(thing).__name__}:{thing!r};".encode())
        case _ if is_dataclass(thing) and not isinstance(thing, type):
            digest.update(type(thing).__qualname__.encode())
            for field in fields(thing):
                _feed(digest, getattr(thing, field.name))
        case _:
            # Types, dtypes, sizes: interned values whose text says all.
            digest.update(f"{type(thing).__qualname__}:{thing};".encode())


def _feed_graph(digest: Any, graph: Graph) -> None:
    """Operations, attributes and wiring; where ops came from changes no number."""
    at: dict[Value, int] = {value: i for i, value in enumerate(graph.inputs)}
    _feed(digest, [(value.name, str(value.type)) for value in graph.inputs])
    for op in graph.topo():
        operands = [-1 if value is None else at[value] for value in op.operands]
        attributes = {name: getattr(op, name) for name in op.attribute_names}
        _feed(digest, (op.opname, operands, attributes, list(op.regions)))
        for value in op.results:
            at[value] = len(at)


def _file_state(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path.resolve()), status.st_size, status.st_mtime_ns
