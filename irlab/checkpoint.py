"""Which safetensors files make up a Hugging Face checkpoint, and which tensor lies in which of them?

A directory holds model.safetensors, or shards listed in model.safetensors.index.json. Pickles are never opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

from .errors import InputError
from .types import TensorType
from .weights import File
from .weights.safetensors import open_safetensors

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.bin.index.json")
_MAX_INDEX_BYTES: Final = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint: `files` says which file holds each. Only headers are read, one shard at a time."""

    path: Path
    files: Mapping[str, Path]

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def type(self, name: str) -> TensorType:
        """The type of tensor `name`, as its file says. Raises InputError if it is missing or not supported."""
        return self.weight(name).of

    def weight(self, name: str) -> File:
        """Tensor `name`, by reference. Raises InputError if it is missing or of a dtype that irlab lacks."""
        path = self.files.get(name)
        if path is None:
            raise InputError(f"{self.path}: the checkpoint has no tensor called '{name}'")
        kind = open_safetensors(path).entry(name).type
        assert kind is not None
        return File(path, name, kind)

    def expect(self, name: str, shape: tuple[int, ...]) -> File:
        """As `weight`, for a tensor that config.json says has this shape; InputError where the file disagrees."""
        found = self.weight(name)
        if found.of.shape != shape:
            raise InputError(
                f"{found.path}: tensor '{name}' is {found.of}, config.json asks for the shape {list(shape)}",
                "config.json and the weights are not of one model",
            )
        return found


def find_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint in directory `path`, or that is the file `path`; None for a directory without any weights, as
    config.json alone makes one. Raises InputError for files that are damaged, unsafe, or pickles."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise _pickle_error(path)
        return _single(path, path)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or directory")
    if (path / INDEX_FILE).is_file():
        return _indexed(path)
    if (path / SINGLE_FILE).is_file():
        return _single(path, path / SINGLE_FILE)
    others = sorted(path.glob("*.safetensors"))
    if len(others) == 1:
        return _single(path, others[0])
    if others:
        raise InputError(f"{path}: {len(others)} safetensors files, but no {INDEX_FILE} that says what they hold")
    pickles = sorted(file for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise _pickle_error(pickles[0])
    return None


def _pickle_error(path: Path) -> InputError:
    directory = path.parent
    command = (
        'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{directory}').save_pretrained('{directory}-safetensors')\""
    )
    return InputError(
        f"{path} is not a safetensors file; pickles can run code when they are opened, so they are refused",
        f"convert it with: {command}",
    )


def _single(path: Path, file: Path) -> Checkpoint:
    return Checkpoint(path, dict.fromkeys(open_safetensors(file).entries, file))


def _indexed(directory: Path) -> Checkpoint:
    """Shards by index. Names are checked as text, so that an index cannot point outside its directory; a symbolic link
    inside it may (the Hugging Face cache is made of them): whoever owns the directory made it."""
    index = directory / INDEX_FILE
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise InputError(f"{index}: an index of {index.stat().st_size} bytes is absurd")
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
    except OSError as error:
        raise InputError(f"{index}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{index}: not a JSON object with a weight_map") from None
    if not isinstance(weight_map, dict):
        raise InputError(f"{index}: weight_map is not a table")
    files: dict[str, Path] = {}
    checked: set[str] = set()
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _stays_inside(name):
            raise InputError(f"{index}: tensor '{tensor}' is said to be in {name!r}, which is outside the directory")
        file = directory / name
        if name not in checked:
            if file.suffix != ".safetensors":
                raise _pickle_error(file)
            if not file.is_file():
                raise InputError(f"{file}: no such file; {INDEX_FILE} names it", "fetch the checkpoint again")
            checked.add(name)
        files[tensor] = file
    return Checkpoint(directory, files)


def _stays_inside(name: str) -> bool:
    """Whether `name` is a plain relative path, on POSIX and on Windows alike."""
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    absolute = posix.is_absolute() or windows.drive or windows.root
    return bool(name) and not absolute and ".." not in windows.parts and "\x00" not in name
