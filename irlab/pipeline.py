"""Pipeline text read into steps.

fuse,quantize{scheme=int4 group=32},repeat{n=3}(canonicalize,cse)
quantize{scheme=int4}@"model.layers.{0..3}.*"{scheme=int8}          options for some layers (see overlay.py)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import ParseError
from .options import quoted

_NAME = re.compile(r"[A-Za-z][\w.-]*")
_VALUE = re.compile(r'"((?:[^"\\]|\\.)*)"|([^\s{}"]+)')
_KEY = re.compile(r"([A-Za-z_][\w-]*)\s*=\s*")
_SPACE = re.compile(r"\s*")

Options = tuple[tuple[str, str], ...]
"""Option values as text, by name, as they were written."""

MAX_NESTING = 16


@dataclass(frozen=True)
class Step:
    """One named step with its options as text, for some layers too, and the pipeline in parentheses behind it."""

    name: str
    options: Options = ()
    body: tuple[Step, ...] = ()
    column: int = 1
    layers: tuple[tuple[str, Options], ...] = ()
    """Layer patterns with the options that hold there."""

    def __str__(self) -> str:
        layers = "".join(f"@{quoted(pattern)}{{{_options_text(options)}}}" for pattern, options in self.layers)
        options = f"{{{_options_text(self.options)}}}" if self.options else ""
        return f"{self.name}{options}{layers}" + (f"({','.join(map(str, self.body))})" if self.body else "")


def _options_text(options: Options) -> str:
    return " ".join(f"{name}={quoted(value)}" for name, value in options)


def parse_pipeline(text: str) -> tuple[Step, ...]:
    """The steps of `text`; raises ParseError with the column."""
    steps, end = _steps(text, 0, 0)
    if end < len(text):
        raise _error(text, end, f"'{text[end]}' was not expected")
    return steps


def parse_target(text: str) -> Step:
    """One step, as `--emit` takes it: `gguf{type=q4_k_m}`."""
    steps = parse_pipeline(text)
    if len(steps) != 1 or steps[0].body:
        raise _error(text, 0, f"'{text}' is not one target", 'for example gguf or "onnx{precision=int4}"')
    return steps[0]


def _error(text: str, position: int, message: str, hint: str = "") -> ParseError:
    error = ParseError(message, hint, line=1, column=position + 1, source="pipeline")
    error.exit_status = 2
    return error


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _steps(text: str, position: int, depth: int) -> tuple[tuple[Step, ...], int]:
    if depth > MAX_NESTING:
        raise _error(text, position, "parentheses are nested too deeply")
    steps: list[Step] = []
    position = _skip(text, position)
    while position < len(text) and text[position] != ")":
        if steps:
            if text[position] != ",":
                raise _error(text, position, f"'{text[position]}' was not expected", "passes are separated by commas")
            position = _skip(text, position + 1)
        step, position = _step(text, position, depth)
        steps.append(step)
        position = _skip(text, position)
    return tuple(steps), position


def _step(text: str, position: int, depth: int) -> tuple[Step, int]:
    match = _NAME.match(text, position)
    if not match:
        raise _error(text, position, "a pass name was expected")
    name, column, position = match[0], position + 1, match.end()
    options: Options = ()
    body: tuple[Step, ...] = ()
    layers: list[tuple[str, Options]] = []
    if text.startswith("{", position):
        options, position = _options(text, position + 1, name)
    while text.startswith("@", position):
        pattern = _VALUE.match(text, position + 1)
        if not pattern or not text.startswith("{", pattern.end()):
            raise _error(text, position, f"{name}: options for layers were expected", 'write @"model.layers.*"{a=b}')
        special, position = _options(text, pattern.end() + 1, name)
        layers.append((_unquoted(pattern), special))
    if text.startswith("(", position):
        start = position
        body, position = _steps(text, position + 1, depth + 1)
        if not text.startswith(")", position):
            raise _error(text, start, "this parenthesis is not closed")
        position += 1
    return Step(name, options, body, column, tuple(layers)), position


def _options(text: str, position: int, name: str) -> tuple[Options, int]:
    start = position - 1
    options: list[tuple[str, str]] = []
    while True:
        position = _skip(text, position)
        if position >= len(text):
            raise _error(text, start, f"the options of {name} are not closed by '}}'")
        if text[position] == "}":
            return tuple(options), position + 1
        key = _KEY.match(text, position)
        if not key:
            raise _error(text, position, f"an option of {name} was expected", "write name=value, separated by spaces")
        value = _VALUE.match(text, key.end())
        if not value:
            raise _error(text, key.end(), f"option '{key[1]}' of {name} has no value")
        if any(key[1] == seen for seen, _ in options):
            raise _error(text, position, f"option '{key[1]}' of {name} is given twice")
        options.append((key[1], _unquoted(value)))
        position = value.end()


def _unquoted(value: re.Match[str]) -> str:
    return value[2] if value[1] is None else re.sub(r"\\(.)", r"\1", value[1])
