"""Outputs appear whole or not at all: written under a temporary name, checked, then renamed into place."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .errors import CheckError, InputError

_MODEL_FILES: Final = ("config.json", "module.ir", "*.safetensors", "*.onnx", "*.gguf", "engine.json", "*/*.onnx")
"""A directory with one of these holds a model. `force` replaces no other: a slip of the pen must not cost a home."""


def require_writable(out: Path, *, directory: bool, force: bool) -> None:
    """Raise InputError if `out` exists (without `force`), is of the other kind, is nothing to replace (a device, a
    directory with other things than a model), has no name of its own, or cannot be written."""
    parent = out.parent
    if out.name in ("", ".."):
        raise InputError(f"{out} is a place, not the name of an output", "add a name to it")
    if out.exists() and not force:
        raise InputError(f"{out} exists", "replace it with --force")
    if out.exists() and out.is_dir() != directory:
        kind = "a directory" if out.is_dir() else "a file"
        raise InputError(f"{out} is {kind}", "choose another name")
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise InputError(f"{out} is neither a file nor a directory", "choose another name")
    if out.is_dir() and any(out.iterdir()) and not any(any(out.glob(name)) for name in _MODEL_FILES):
        raise InputError(f"{out} holds other things than a model", "choose another name, or empty it yourself")
    if not parent.is_dir():
        raise InputError(f"the directory {parent} does not exist", "create it first")
    if not os.access(parent, os.W_OK):
        raise InputError(f"the directory {parent} cannot be written to")


def require_space(needed: Mapping[Path, int]) -> None:
    """Raise InputError if the disks have no room for outputs that are written together: bytes by their paths."""
    disks: dict[int, list[Path]] = {}
    for out in needed:
        disks.setdefault(out.parent.stat().st_dev, []).append(out)
    for outs in disks.values():
        total, parent = sum(needed[out] for out in outs), outs[0].parent
        free = shutil.disk_usage(parent).free
        if total > free:
            what = f"{outs[0]} needs" if len(outs) == 1 else f"{', '.join(map(str, outs))} together need"
            raise InputError(f"{what} about {total:,} bytes, {parent} has {free:,} free")


@contextmanager
def whole_output(out: Path, *, directory: bool, force: bool, beside: Sequence[str] = ()) -> Iterator[Path]:
    """A fresh path beside `out` to write to; renamed to `out` when the block ends well, removed when it does not.

    `beside` names further files by the suffix that takes the place of that of the path: they share its fate. After a
    CheckError the file stays as OUT.rejected, for inspection. Raises InputError before any work if `out` exists
    (without `force`) or cannot be written.
    """
    require_writable(out, directory=directory, force=force)
    for suffix in beside:
        require_writable(out.with_suffix(suffix), directory=False, force=force)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        if directory:
            temporary.mkdir()
        yield temporary
        for suffix in beside:
            temporary.with_suffix(suffix).replace(out.with_suffix(suffix))
        _swap_in(temporary, out)
    except CheckError as error:
        rejected = out.with_name(out.name + ".rejected")
        if temporary.exists():
            _remove(rejected)
            temporary.rename(rejected)
            error.hint = error.hint or f"the output is kept as {rejected}"
        raise
    except OSError as error:
        raise InputError(f"writing {out} failed: {error.strerror or error}") from error
    finally:
        for path in (temporary, *map(temporary.with_suffix, beside)):
            _remove(path)


def _swap_in(temporary: Path, out: Path) -> None:
    if not out.is_dir():
        temporary.replace(out)
        return
    old = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.old")
    out.rename(old)
    try:
        temporary.rename(out)
    except OSError:
        old.rename(out)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """The bytes in a file, or in the files of a directory."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size


def require_size(path: Path, limit: int | None) -> None:
    """Raise CheckError if what was written is larger than a pass promised."""
    if limit is not None and (size := size_bytes(path)) > limit:
        raise CheckError(
            f"{size:,} bytes were written, more than the {limit:,} that were asked for",
            "a pass after mixed-precision made the model larger: put it before",
        )
