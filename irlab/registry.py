"""Plug-ins by name: passes, frontends and backends, found through entry points and loaded when first needed.

The door that a third party's package uses is the door that irlab's own plug-ins use. `load_file` (`--load`) adds what
one Python file declares; a class declared in the running process is found too, behind those.
"""

from __future__ import annotations

import sys
import traceback
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, UsageError
from .options import did_you_mean

if TYPE_CHECKING:
    from .encodings import Encoding
    from .ir import Module
    from .passmgr import Pass
    from .target import Backend, Frontend
    from .weights import Recipe

_added: dict[str, dict[str, Any]] = {"passes": {}, "frontends": {}, "backends": {}}


@cache
def _found(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"irlab.{group}")}


def names(group: str) -> list[str]:
    """The names in "passes", "frontends" or "backends"; nothing is imported."""
    return sorted({*_found(group), *_added[group], *(["repeat"] if group == "passes" else [])})


def lookup(group: str, name: str) -> Any:
    """The class called `name`; raises UsageError with a suggestion."""
    if name in _added[group]:
        return _added[group][name]
    if group == "passes" and name == "repeat":
        from .passmgr import Repeat

        return Repeat
    point = _found(group).get(name)
    declared = {} if point is not None else _declared(group)
    if name in declared:
        return declared[name]
    kind = {"passes": "pass", "frontends": "frontend", "backends": "backend"}[group]
    if point is None:
        raise UsageError(f"unknown {kind} '{name}'", did_you_mean(name, {*names(group), *declared}))
    try:
        return point.load()
    except ImportError as error:
        raise InputError(f"{kind} '{name}' of {point.value} cannot be loaded: {error}") from error


def _declared(group: str) -> dict[str, Any]:
    """What this process has declared in Python, installed or not; of two with one name, the later."""
    from .passmgr import Pass
    from .target import Backend, Frontend

    found: dict[str, Any] = {}
    bases: dict[str, type] = {"passes": Pass, "frontends": Frontend, "backends": Backend}
    stack = [bases[group]]
    while stack:
        subclasses: list[type] = stack.pop().__subclasses__()
        for cls in subclasses:
            stack.append(cls)
            if name := vars(cls).get("name"):
                found[name] = cls
    return found


def pass_class(name: str) -> type[Pass]:
    """The pass called `name`."""
    found: type[Pass] = lookup("passes", name)
    return found


def backend(name: str) -> type[Backend]:
    """The backend called `name`."""
    found: type[Backend] = lookup("backends", name)
    return found


def frontend(name: str) -> type[Frontend]:
    """The frontend called `name`."""
    found: type[Frontend] = lookup("frontends", name)
    return found


def encoder(name: str) -> Any:
    """The function registered as `name` under "encoders", which encodes what irlab does not; raises InputError."""
    point = _found("encoders").get(name)
    if point is None:
        raise InputError(f"nothing that is installed encodes types of '{name}'", "install irlab with its backends")
    return point.load()


def mixed_encodings(module: Module, mix: str, calibrated: bool, allow_fallback: bool) -> dict[str, Encoding]:
    """The encoding of each matrix of `module`, by name, in a mix of types: a file type of llama.cpp such as q4_k_m. The
    function registered as "gguf" under "mixes" knows them; raises InputError where nothing is registered."""
    found: dict[str, Encoding] = _provided("mixes", "gguf")(module, mix, calibrated, allow_fallback)
    return found


def importances(module: Module, path: str) -> dict[str, Recipe]:
    """The importances f32[in] of the columns of matrices of `module`, by name, in an importance matrix of llama.cpp.
    The function registered as "gguf" under "importances" reads it; raises InputError where nothing is registered."""
    found: dict[str, Recipe] = _provided("importances", "gguf")(module, path)
    return found


def _provided(group: str, name: str) -> Any:
    point = _found(group).get(name)
    if point is None:
        raise InputError(f"nothing that is installed knows {group} of '{name}'", "install irlab with its backends")
    return point.load()


def load_file(path: str) -> None:
    """Run a Python file and register the passes, frontends and backends it declares (this runs its code).

    One that has the name of an installed plug-in takes its place. The file may import others beside it. Raises
    InputError naming the line that failed.
    """
    import importlib.util

    from .passmgr import Pass
    from .target import Backend, Frontend

    file = Path(path)
    spec = importlib.util.spec_from_file_location(f"irlab_loaded_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file", "--load takes a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    folder = str(file.absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file of the name of an installed package must not hide it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise InputError(f"{_place(file, error)}: {type(error).__name__}: {_first_line(error)}") from error
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            for group, base in (("passes", Pass), ("frontends", Frontend), ("backends", Backend)):
                if issubclass(value, base) and value.name:
                    _added[group][value.name] = value


def _place(file: Path, error: Exception) -> str:
    """The line of `file` at which running it failed, as file:line."""
    path = str(file.absolute())
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{file}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{file}:{lines[-1]}" if lines else str(file)


def _first_line(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return text.strip().split("\n", 1)[0]
