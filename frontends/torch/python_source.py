"""How `pkg.module:callable` on the command line becomes a module with example arguments. It runs the user's code."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from irlab.errors import InputError

if TYPE_CHECKING:
    import torch


def call_python(place: str) -> tuple[torch.nn.Module, tuple[Any, ...], Any]:
    """(module, example arguments, dynamic shapes or None), returned by the callable at "pkg.module:callable"."""
    import torch

    module_name, colon, attribute = place.partition(":")
    if not (module_name and colon and attribute):
        raise InputError(f"python:{place} names no callable", "write python:package.module:callable")
    try:
        found: Any = import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except ImportError as error:
        raise InputError(f"python:{place}: {error}") from error
    except AttributeError:
        raise InputError(f"python:{place}: {module_name} has no {attribute}") from None
    given = found()
    if not (isinstance(given, tuple) and len(given) in (2, 3) and isinstance(given[0], torch.nn.Module)):
        raise InputError(
            f"python:{place} returned {type(given).__name__}",
            "return (nn.Module, example_args) or (nn.Module, example_args, dynamic_shapes)",
        )
    args = given[1] if isinstance(given[1], (tuple, list)) else (given[1],)
    return given[0], tuple(args), given[2] if len(given) == 3 else None
