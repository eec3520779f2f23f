"""How an op class is called in text: which operands it takes, which attributes it needs, how one is built."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from ..ir import Op, Value
from ..opdef import REQUIRED, Field, FieldKind
from ..types import TensorType
from .attributes import said_by_types

Operands = list[Value | None]


class Signature:
    """The fields of an op class, sorted for the parser."""

    def __init__(self, cls: type[Op]) -> None:
        self.cls = cls
        self.operands = [f for f in cls.fields if f.name in cls.operand_names]
        self.attributes = {f.name: f for f in cls.fields if f.kind is FieldKind.ATTRIBUTE}
        self.variadic = bool(self.operands) and self.operands[-1].kind is FieldKind.VARIADIC
        self.said: dict[str, Callable[[tuple[TensorType, ...]], object]] = {}
        for field in self.attributes.values():
            said = said_by_types(field)
            if said is not None:
                self.said[field.name] = said
        # With so many operands, none of them absent, they are the constructor's first arguments as they stand.
        in_order = list(cls.fields[: len(self.operands)]) == self.operands and not self.variadic
        self.least = sum(f.kind is FieldKind.OPERAND for f in self.operands) if in_order else 1
        self.most = len(self.operands) if in_order else 0

    def wrong_operands(self, given: Operands) -> str:
        """What is wrong with the number or the absence of operands, if anything."""
        fixed = self.operands[:-1] if self.variadic else self.operands
        for i, field in enumerate(fixed):
            if field.kind is FieldKind.OPERAND and (i >= len(given) or given[i] is None):
                return f"the operand '{field.name}' is missing"
        if self.variadic:
            if None in given[len(fixed) :]:
                return f"no operand of '{self.operands[-1].name}' may be none"
        elif len(given) > len(fixed):
            return f"{len(given)} operands are too many: it takes {len(fixed)}"
        return ""

    def arrange(self, given: Operands) -> dict[str, Any]:
        """The operands by field, for the constructor."""
        fixed = len(self.operands) - self.variadic
        arguments: dict[str, Any] = {
            field.name: given[i] if i < len(given) else None for i, field in enumerate(self.operands[:fixed])
        }
        if self.variadic:
            arguments[self.operands[-1].name] = tuple(given[fixed:])
        return arguments

    def missing(self, attributes: dict[str, Any]) -> Field | None:
        """A required attribute that is not among `attributes`."""
        for name, field in self.attributes.items():
            if field.default is REQUIRED and name not in attributes:
                return field
        return None


@cache
def signature(cls: type[Op]) -> Signature:
    """The signature of an op class."""
    return Signature(cls)
