"""Which TensorRT is installed? The datacenter package where it loads, else TensorRT-RTX; both have one API.

NVIDIA ships no types for it, so layers, tensors and networks are `Any` here; docstrings name the classes.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final, TypeAlias

from irlab.errors import InputError

PACKAGES: Final = ("tensorrt", "tensorrt_rtx")
"""In the order in which they are tried."""

ITensor: TypeAlias = Any
"""A tensor of a network under construction."""

ILayer: TypeAlias = Any
"""A layer of a network under construction, seen as its own class (`layer.add_cast` gives an ICastLayer ...)."""


def _installed(name: str) -> bool:
    """Whether a package of that name is installed; a mere folder that happens to be called so is none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def missing() -> str:
    """Empty if some TensorRT is installed, else the one line that says what to do. Imports nothing."""
    if any(map(_installed, PACKAGES)):
        return ""
    return "no TensorRT builder is installed: pip install 'irlab[tensorrt]'"


@cache
def load() -> Any:
    """The module of the first TensorRT that loads. Raises InputError where none does."""
    reasons = []
    for name in PACKAGES:
        if not _installed(name):
            continue
        try:
            return import_module(name)
        except Exception as error:  # the bindings raise whatever their libraries' loader says
            reasons.append(f"{name} does not load: {str(error).splitlines()[0]}")
    raise InputError("; ".join(reasons) or missing())


def builder_version() -> str:
    """The package and its version, such as "tensorrt_rtx 1.7.1.116"."""
    library = load()
    try:
        return f"{library.__name__} {version(library.__name__)}"
    except PackageNotFoundError:
        return f"{library.__name__} {library.__version__}"
