"""What does it take to see a failure again? One .ir file: the IR before the pass that failed, and how it was run.

    // irlab reproducer: run irlab-opt on this file
    // options: '--passes=my-pass{n=3}' --seed=0 --check=rewrites
    // error: ValueError: no luck
    // weights: read from the files named below
    irlab 1
    module ...

`irlab-opt FILE` runs it with these options; others on the command line come after them and win.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import __version__
from .ir import Module
from .passmgr import Instrument, Pass
from .stand_ins import beyond_text, missing, stand_ins, with_stand_ins
from .trust import is_signed, signature
from .weight_uses import replace_weights

FIRST_LINE: Final = "// irlab reproducer: run irlab-opt on this file"

LONGEST_HEADER: Final = 64 << 10
"""So much of an .ir file is searched for a header."""


class Reproducer(Instrument):
    """Writes a reproducer to `path` when a pass, or an instrument around it, fails.

    `options` are those of the command line that matter beside the pipeline; `loaded` the Python files that declare
    passes. It goes first among instruments, so that it sees what the others raise.
    """

    def __init__(self, path: Path, options: Sequence[str] = (), loaded: Sequence[str] = ()) -> None:
        self.path, self.options = path, list(options)
        self.loaded = [str(Path(file).resolve()) for file in loaded]
        self.written = False
        self._before: list[tuple[str, list[str]]] = []

    def before_pass(self, step: Pass, module: Module) -> None:
        self._before.append(_text(module, self.path))

    def after_pass(self, step: Pass, module: Module, record: object) -> None:
        self._before.pop()

    def pass_failed(self, step: Pass, module: Module, error: Exception) -> None:
        text, replaced = self._before.pop()
        if self.written:  # by a pass inside this one
            return
        from .outputs import whole_output

        weights = "read from the files named below; random numbers stand in for files that are not there"
        if replaced:
            names = f"{', '.join(replaced[:4])}{' ...' if len(replaced) > 4 else ''}"
            weights += f", and for {len(replaced)} that existed in memory only: {names}"
        options = shlex.join([f"--passes={step}", *self.options])
        load = shlex.join(self.loaded)
        lines = [f"options: {options}"]
        if load:
            lines += [f"load: {load}", f"signature: {signature(_signed(options, load))}"]
        lines += [f"error: {_one_line(error)}", f"weights: {weights}", f"made by: {_versions()}"]
        header = "".join(f"// {line}\n" for line in lines)
        with whole_output(self.path, directory=False, force=True) as temporary:
            temporary.write_text(f"{FIRST_LINE}\n{header}{text}", encoding="utf-8")
        self.written = True


@dataclass(frozen=True)
class Replay:
    """How a reproducer was run. `load` names Python files; `is_ours`: this user wrote it, so they may be run."""

    options: tuple[str, ...]
    load: tuple[str, ...]
    error: str
    is_ours: bool


def read_replay(file: Path) -> Replay | None:
    """How to replay `file`; None if it is no reproducer."""
    try:
        with open(file, encoding="utf-8") as stream:
            if stream.readline(LONGEST_HEADER).rstrip("\n") != FIRST_LINE:
                return None
            found: dict[str, str] = {}
            while (line := stream.readline(LONGEST_HEADER)).startswith("// "):
                key, _, value = line[3:].rstrip("\n").partition(": ")
                found.setdefault(key, value)
    except (OSError, UnicodeDecodeError):
        return None
    options, load = found.get("options", ""), found.get("load", "")
    try:
        parts = tuple(shlex.split(options)), tuple(shlex.split(load))
    except ValueError:
        return None
    return Replay(*parts, found.get("error", ""), is_signed(_signed(options, load), found.get("signature", "")))


def fill_in(module: Module) -> list[str]:
    """Let random numbers stand in for weights whose files are not there; the names of the weights."""
    return with_stand_ins(module, missing)


def _text(module: Module, path: Path) -> tuple[str, list[str]]:
    """The module as text that will lie at `path`, and the weights that random numbers stand in for."""
    from .text import print_module

    replaced = stand_ins(module, beyond_text)
    if replaced:
        module = module.clone()
        replace_weights(module.graph, replaced)
    return print_module(module, path.resolve().parent), list(replaced)


def _signed(options: str, load: str) -> str:
    return f"{options}\n{load}"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def _versions() -> str:
    from importlib.metadata import version

    return f"irlab {__version__}, torch {version('torch')}, Python {platform.python_version()}"
