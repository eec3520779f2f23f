"""Runs tests/filecheck/*.ir: each says in `// RUN:` lines what is run, and in `// CHECK` lines what must come out.

    // RUN: irlab-opt %s -p cse | filecheck %s
    // RUN: not irlab-opt %s -p kv-cache 2>&1 | filecheck %s --check-prefix ERROR

%s is the file, %t a fresh path. `not` wants a failure. Commands are irlab-opt, through its own main(), and filecheck,
both in this process: a new one would take longer to start than to run. `python tests/filecheck/test_filecheck.py FILE`
shows what a file's commands print.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def run_lines(file: Path) -> list[str]:
    """The commands of a file; a line that ends with a backslash goes on in the next RUN line."""
    lines: list[str] = []
    for line in file.read_text().splitlines():
        marker, found, command = line.partition("RUN:")
        if found and marker.strip() in ("//", "#"):
            if lines and lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1] + command.strip()
            else:
                lines.append(command.strip())
    return lines


def irlab_opt(arguments: list[str], given: str) -> tuple[int, str, str]:
    """The exit status, output and error output of irlab-opt."""
    from irlab.cli import main

    with captured(given) as (out, err):
        try:
            status = main(arguments)
        except SystemExit as stop:  # argparse
            status = stop.code if isinstance(stop.code, int) else 1
    return status, out.getvalue(), err.getvalue()


def filecheck(arguments: list[str], given: str) -> tuple[int, str, str]:
    """The same of filecheck."""
    from filecheck.matcher import Matcher
    from filecheck.options import parse_argv_options

    with captured(given) as (out, err):
        status = Matcher.from_opts(parse_argv_options(["filecheck", *arguments])).run()
    return status, out.getvalue(), err.getvalue()


COMMANDS = {"irlab-opt": irlab_opt, "filecheck": filecheck}


@contextlib.contextmanager
def captured(given: str) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err, stdin = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO(given)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield out, err
    finally:
        sys.stdin = stdin


def run_pipe(line: str, file: Path, temporary: Path) -> str:
    """Run one RUN line; returns what the last command printed. Raises AssertionError with all output on a failure."""
    text = ""
    for command in line.split(" | "):
        words = shlex.split(command.replace("%s", str(file)).replace("%t", str(temporary)))
        joined = "2>&1" in words
        words = [word for word in words if word != "2>&1"]
        wants_failure = words[0] == "not"
        name, *arguments = words[wants_failure:]
        assert name in COMMANDS, f"{file.name}: unknown command {name}"
        status, out, err = COMMANDS[name](arguments, text)
        assert bool(status) == wants_failure, f"{command}\nexit status {status}\n{text}\n{out}\n{err}"
        text = out + err if joined else out
    return text


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.ir")), ids=lambda f: str(f.relative_to(FOLDER)))
def test_filecheck(file: Path, tmp_path: Path) -> None:
    lines = run_lines(file)
    assert lines, f"{file} has no RUN line"
    for line in lines:
        run_pipe(line, file, tmp_path / "t")


def test_a_failing_check_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "wrong.ir"
    file.write_text(
        '// RUN: irlab-opt %s | filecheck %s\n// CHECK: prim.sub\nirlab 1\nmodule "m"\n'
        "graph(%x: f32[2]) {\n  %0 = prim.add(%x, %x) : f32[2]\n  return y=%0\n}\n"
    )
    with pytest.raises(AssertionError, match="exit status"):
        test_filecheck(file, tmp_path)
    file.write_text(file.read_text().replace("prim.sub", "prim.add(%x, %x)"))
    test_filecheck(file, tmp_path)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        for line in run_lines(path):
            print(run_pipe(line.split(" | filecheck")[0], path, Path("/tmp/t")))
