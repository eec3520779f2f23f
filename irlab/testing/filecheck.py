"""RUN/CHECK tests in one IR file, run by pytest: a file says in `// RUN:` what is run, in `// CHECK` what comes out.

    // RUN: irlab-opt %s -p cse | filecheck %s
    // RUN: not irlab-opt %s -p kv-cache 2>&1 | filecheck %s --check-prefix ERROR
    // CHECK: prim.add(%x, %x)

%s is the file, %S its folder, %t a fresh path. `not` wants a failure. Commands are irlab-opt, through its own main(),
and filecheck (PyPI filecheck), both in this process: a new one would take longer to start than to run.

As a pytest plug-in this module collects the `.ir` files that have RUN lines. In `pyproject.toml` or on a command line:

    [tool.pytest.ini_options]
    addopts = "-p irlab.testing.filecheck"

`python -m irlab.testing.filecheck FILE...` shows what the commands of a file print, to write CHECK lines from.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

SUFFIXES: Final = (".ir",)
"""What the plug-in collects."""

_COMMENTS: Final = ("//", "#")


class FileCheckError(Exception):
    """A RUN line that did not do what it says; the text is for people."""


def run_lines(file: Path) -> list[str]:
    """The commands of a file; a line that ends with a backslash goes on in the next RUN line."""
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        marker, found, command = line.partition("RUN:")
        if found and marker.strip() in _COMMENTS:
            if lines and lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1] + command.strip()
            else:
                lines.append(command.strip())
    return lines


def run_file(file: Path) -> None:
    """Run the RUN lines of `file`; raises FileCheckError for the first that fails, or if there is none."""
    lines = run_lines(file)
    if not lines:
        raise FileCheckError(f"{file} has no RUN line")
    with tempfile.TemporaryDirectory(prefix="irlab-filecheck-") as folder:
        for line in lines:
            run_pipe(line, file, Path(folder) / "t")


def run_pipe(line: str, file: Path, temporary: Path) -> str:
    """Run one RUN line; returns what the last command printed. Raises FileCheckError with all output on a failure."""
    text = ""
    for words in _commands(line):
        words = [_substitute(word, file, temporary) for word in words]
        joined = "2>&1" in words
        words = [word for word in words if word != "2>&1"]
        wants_failure = words[0] == "not"
        name, *arguments = words[wants_failure:] or ("",)
        if name not in COMMANDS:
            raise FileCheckError(f"{file.name}: unknown command '{name}': RUN lines know {', '.join(COMMANDS)} and not")
        status, out, err = COMMANDS[name](arguments, text)
        if bool(status) != wants_failure:
            wanted = "a failure was wanted" if wants_failure else "it should succeed"
            given = f"\n--- its input ---\n{text}" if text else ""
            raise FileCheckError(f"{shlex.join(words)}\nexit status {status}, {wanted}\n{out}{err}{given}".rstrip())
        text = out + err if joined else out
    return text


def _commands(line: str) -> list[list[str]]:
    """The words of the commands of a pipe. A bar in quotes is part of a word."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|")
    lexer.whitespace_split = True
    lexer.commenters = ""
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word == "|":
            commands.append([])
        else:
            commands[-1].append(word)
    if not all(commands):
        raise FileCheckError(f"a command is missing in the RUN line: {line}")
    return commands


def _substitute(word: str, file: Path, temporary: Path) -> str:
    for sign, path in (("%s", file), ("%S", file.parent), ("%t", temporary)):
        word = word.replace(sign, str(path))
    return word


def irlab_opt(arguments: Sequence[str], given: str = "") -> tuple[int, str, str]:
    """The exit status, output and error output of irlab-opt on `given`, in this process."""
    from ..cli import main

    with _captured(given) as (out, err):
        try:
            status = main(arguments)
        except SystemExit as stop:  # argparse
            status = stop.code if isinstance(stop.code, int) else 1
    return status, out.getvalue(), err.getvalue()


def _filecheck(arguments: list[str], given: str) -> tuple[int, str, str]:
    """The same of filecheck."""
    try:
        from filecheck.matcher import Matcher
        from filecheck.options import parse_argv_options
    except ImportError:
        raise FileCheckError("RUN lines need the package filecheck: pip install 'irlab[test]'") from None

    with _captured(given) as (out, err):
        status = Matcher.from_opts(parse_argv_options(["filecheck", *arguments])).run()
    return status, out.getvalue(), err.getvalue()


COMMANDS: Final[dict[str, Callable[[list[str], str], tuple[int, str, str]]]] = {
    "irlab-opt": irlab_opt,
    "filecheck": _filecheck,
}


@contextlib.contextmanager
def _captured(given: str) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err, stdin = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(given)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield out, err
    finally:
        sys.stdin = stdin


# pytest


class FileCheckFile(pytest.File):
    """One IR file with RUN lines."""

    def collect(self) -> Iterator[pytest.Item]:
        yield FileCheckItem.from_parent(self, name="RUN")


class FileCheckItem(pytest.Item):
    """The RUN lines of one file, as one test."""

    def runtest(self) -> None:
        run_file(self.path)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *_: Any) -> Any:
        """What the command printed; a traceback only for an error of the runner itself."""
        if isinstance(excinfo.value, FileCheckError):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.path.name


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> FileCheckFile | None:
    """Collect IR files with RUN lines."""
    if file_path.suffix in SUFFIXES and run_lines(file_path):
        return FileCheckFile.from_parent(parent, path=file_path)
    return None


def main(files: Sequence[str]) -> int:
    """Print what the commands of each file print, without the filecheck at the end."""
    for file in map(Path, files):
        with tempfile.TemporaryDirectory(prefix="irlab-filecheck-") as folder:
            for line in run_lines(file):
                try:
                    print(run_pipe(line.split("| filecheck")[0].strip(), file, Path(folder) / "t"))
                except FileCheckError as error:
                    print(error)
                    return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
