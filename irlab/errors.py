"""The exceptions irlab raises on purpose, and the exit status each one means."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ir import Op


class IrlabError(Exception):
    """Anything irlab reports in one line: what is wrong, where, and what to do about it.

    `hint` is the way out, printed after the message; `details` is text of many lines that is printed before it.
    """

    exit_status = 1
    details = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InputError(IrlabError):
    """The input file, directory or request is at fault."""


class PlanError(InputError):
    """Only the work itself would show what a plan is asked for."""


class UsageError(IrlabError):
    """The command line or pipeline text is at fault."""

    exit_status = 2


class IRError(IrlabError):
    """An op or graph breaks a rule of the IR. `op` is where, if one op is to blame."""

    exit_status = 3

    def __init__(self, message: str, hint: str = "", op: Op | None = None) -> None:
        super().__init__(message, hint)
        self.op = op


class TypeInferenceError(IRError):
    """Operand types or attributes do not fit the op that is being built."""

    exit_status = 1


class CheckError(IrlabError):
    """A differential check or a parity gate found a difference."""

    exit_status = 3


class ParseError(InputError):
    """IR or pipeline text cannot be read. `line` and `column` count from 1."""

    def __init__(self, message: str, hint: str = "", *, line: int, column: int, source: str = "<text>") -> None:
        super().__init__(f"{source}:{line}:{column}: {message}", hint)
        self.line, self.column, self.source = line, column, source


class LegalityError(InputError):
    """A target cannot represent what the graph asks for."""
