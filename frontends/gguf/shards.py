"""A model may lie in several files: the first, -00001-of-0000N.gguf, has the metadata, and each has some tensors."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from irlab.errors import InputError
from irlab.weights.gguf import Entry, GGUFFile, open_gguf

_MAX_SHARDS: Final = 10_000
_FIRST: Final = "-00001-of-*.gguf"
_NAME: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def first_file(source: Path) -> Path | None:
    """The file to load of `source`, a GGUF file or a directory of shards; None if it is neither."""
    if source.is_dir():
        first = sorted(source.glob(f"*{_FIRST}"))
        return first[0] if len(first) == 1 else None
    return source if source.suffix == ".gguf" and source.is_file() else None


def open_model(path: Path) -> GGUFFile:
    """The file `path` with the tensors of all its shards. Raises InputError where a shard is missing, or is not of this
    model."""
    first = open_gguf(path)
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= _MAX_SHARDS:
        raise InputError(f"{path}: split.count is {count!r}, which is no number of files")
    if count < 2:
        return first
    named = _NAME.fullmatch(path.name)
    if named is None or int(named["count"]) != count or first.metadata.get("split.no") != 0:
        raise InputError(f"{path} is one of {count} files and not the first", "give that which ends in -00001-of-…")
    entries: dict[str, Entry] = dict(first.entries)
    for number in range(1, count):
        other = open_gguf(path.with_name(f"{named['stem']}-{number + 1:05}-of-{count:05}.gguf"))
        twice = entries.keys() & other.entries.keys()
        if twice:
            raise InputError(f"{other.path}: tensor '{min(twice)}' is in another shard too")
        entries |= other.entries
    total = first.metadata.get("split.tensors.count", len(entries))
    if total != len(entries):
        raise InputError(f"{path}: {count} files hold {len(entries)} tensors of {total}")
    return replace(first, entries=entries)
