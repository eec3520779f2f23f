"""How does somebody start a package of passes? `irlab-opt --new-plugin NAME` writes a small one that is complete.

The package has one rule, one pass, a RUN/CHECK test, a property test, and the entry point by which irlab finds the
pass. The texts are the files of `template/`; `$name` (my-passes), `$package` (my_passes) and `$version` (of irlab)
stand for what differs.
"""

from __future__ import annotations

import keyword
import re
import sys
from importlib.metadata import packages_distributions
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Final

from .. import __version__
from ..errors import InputError, UsageError
from ..outputs import whole_output
from ..registry import names

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_RESERVED: Final = frozenset({"irlab", "test", "tests", "passes", "frontends", "backends", "template"})
_SUFFIX: Final = ".in"
"""Keeps templates from being taken for sources by Python and its tools."""


def new_plugin(name: str, directory: Path) -> Path:
    """Write the package `name`, which holds the pass `name`, to a new folder in `directory`; gives the folder.

    Raises UsageError for a name that cannot be one of a package and a pass, InputError if the folder exists or cannot
    be written.
    """
    _require_name(name)
    if not directory.is_dir():
        raise InputError(f"the directory {directory} does not exist", "create it first")
    folder = directory / name
    if folder.exists():
        raise InputError(f"{folder} exists", "choose another name, or another --directory")
    words = {"name": name, "package": name.replace("-", "_"), "version": __version__}
    with whole_output(folder, directory=True, force=False) as temporary:
        _write(files(__name__) / "template", temporary, words)
    return folder


def _require_name(name: str) -> None:
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be the name of a plug-in", "small letters, digits and single hyphens: my-pass"
        )
    if keyword.iskeyword(package) or package in sys.stdlib_module_names or package in _RESERVED:
        raise UsageError(f"'{name}' cannot be the name of a plug-in", "Python or irlab uses it already")
    if package in packages_distributions():
        raise UsageError(f"an installed package is called {package} already", "choose another name")
    if name in names("passes"):
        raise UsageError(f"there is a pass '{name}' already", "choose another name")


def _write(template: Traversable, out: Path, words: dict[str, str]) -> None:
    for entry in template.iterdir():
        if entry.is_dir():
            inner = out / (words["package"] if entry.name == "package" else entry.name)
            inner.mkdir()
            _write(entry, inner, words)
        elif entry.name.endswith(_SUFFIX):
            text = Template(entry.read_text(encoding="utf-8")).substitute(words)
            (out / entry.name.removesuffix(_SUFFIX)).write_text(text, encoding="utf-8")
