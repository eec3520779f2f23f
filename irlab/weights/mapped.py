"""Bytes of a file, mapped rather than loaded."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import InputError


def mapped(path: Path, first: int, size: int, name: str) -> npt.NDArray[np.uint8]:
    """`size` bytes of `path` from `first` on, which hold tensor `name`: u8[size], not to be written to.

    A mapping for each read: it goes away with the array, so resident memory does not grow with the file.
    """
    if not size:
        return np.empty(0, np.uint8)
    aligned = first - first % mmap.ALLOCATIONGRANULARITY
    try:
        with open(path, "rb") as file:
            found = mmap.mmap(file.fileno(), first - aligned + size, access=mmap.ACCESS_READ, offset=aligned)
    except ValueError:
        raise InputError(f"{path}: the file became shorter while it was read") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read tensor '{name}': {error.strerror}") from None
    return np.frombuffer(found, np.uint8, count=size, offset=first - aligned)
