"""What a pattern says of an op's attribute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ir import Op
from ..opdef import canonical_attribute
from ..types import DTYPES
from .nodes import Number, PatternError, Predicate, Variable


class Attribute:
    """What an attribute must be: a literal of the attribute's own type, a variable that captures it, or a condition."""

    __slots__ = ("accepts", "name", "plain", "wanted")

    def __init__(self, cls: type[Op], name: str, annotation: str, wanted: object) -> None:
        if isinstance(wanted, list):
            wanted = tuple(wanted)
        if annotation == "DType" and isinstance(wanted, str):
            if wanted not in DTYPES:
                raise PatternError(f"{cls.opname}: unknown dtype {wanted!r}")
            wanted = DTYPES[wanted]
        if callable(wanted):
            wanted = Variable("", _judge_attribute(f"{name} of {cls.opname}", wanted))
        self.name, self.wanted = name, wanted
        self.plain = True
        """Whether acceptance is equality with `wanted`."""
        self.accepts: Callable[[Op], bool] = lambda op: bool(getattr(op, name) == self.wanted)
        if annotation in ("Axis", "Axes") and not isinstance(wanted, Variable):
            entries = wanted if isinstance(wanted, tuple) else (wanted,)
            if all(isinstance(axis, int) and axis < 0 for axis in entries):
                self.wanted = tuple(sorted(set(entries))) if annotation == "Axes" else wanted
            else:
                self.plain = False
                self.accepts = lambda op: getattr(op, name) == canonical_attribute(op, annotation, wanted)
        elif isinstance(wanted, float):
            number = Number(wanted)
            self.plain = False
            self.accepts = lambda op: number.accepts(getattr(op, name))

    def __repr__(self) -> str:
        return f"{self.name}={self.wanted!r}"


def _judge_attribute(what: str, condition: Predicate) -> Predicate:
    """`condition`, which says what it refused where it gives no reason of its own."""

    def judge(found: Any) -> bool | str:
        verdict = condition(found)
        return verdict if isinstance(verdict, str) else bool(verdict) or f"{what} is {found}"

    return judge
