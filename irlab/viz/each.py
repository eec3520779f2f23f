"""How did the graph look after each pass? An instrument that dumps it every time, in numbered files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..errors import InputError
from ..ir import Module
from ..passmgr import Instrument, Pass, PassRecord
from .write import dump, require_format

PREFERRED: Final = (".html", ".svg", ".dot")


class DumpEach(Instrument):
    """Writes `DIR/00-input.svg`, `DIR/01-fuse.svg` and so on; the passes inside a `repeat` are numbered as they run.

    `format` is a suffix of `WRITERS`; if empty, the first of `PREFERRED` that can be made here. Raises InputError where
    DIR holds something, unless `force`: then earlier files of the same names are replaced.
    """

    def __init__(self, directory: Path, format: str = "", *, full: bool = False, force: bool = False) -> None:
        self.directory, self.full = directory, full
        self.suffix = "." + format.removeprefix(".") if format else _best(directory)
        self._count = 0
        require_format(directory / f"00-input{self.suffix}")
        if directory.exists() and not directory.is_dir():
            raise InputError(f"{directory} is a file", "choose another name")
        if not force and directory.is_dir() and any(directory.iterdir()):
            raise InputError(f"the directory {directory} is not empty", "use another, or --force")

    def begin(self, module: Module) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.directory} cannot be made: {error.strerror}") from error
        self._dump(module, "input")

    def after_pass(self, step: Pass, module: Module, record: PassRecord) -> None:
        self._dump(module, step.name)

    def _dump(self, module: Module, name: str) -> None:
        dump(module, self.directory / f"{self._count:02}-{name}{self.suffix}", full=self.full)
        self._count += 1


def _best(directory: Path) -> str:
    """Of the drawings that can be made here, the one that shows most."""
    for suffix in PREFERRED:
        try:
            require_format(directory / f"x{suffix}")
        except InputError:
            continue
        return suffix
    return ".json"
