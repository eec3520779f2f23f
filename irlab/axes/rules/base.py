"""What is a rule? It is given an op and the axes of its operands, equates some, and gives the axes of the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from ...dims import Size
from ...ir import Op, Value
from ..axis import Axis, fix, unify

Axes: TypeAlias = "tuple[Axis, ...]"
"""The axes of one value."""

At: TypeAlias = Callable[[Value], Axes]
"""What gives the axes of an operand."""

Rule: TypeAlias = Callable[[Any, At], Sequence[Axes]]

RULES: Final[dict[type[Op], Rule]] = {}
"""The rule of each op class; a class without one has that of its base class. Plug-ins may add theirs."""

ACTIVATED: Final = "activated"
CONVOLVED: Final = "convolved"
KV_HEADS: Final = "kv heads"
QUERY_HEADS: Final = "query heads to a kv head"
HEAD_FEATURES: Final = "features of a head"
VALUE_FEATURES: Final = "value features of a head"
INDEXED: Final = "indexed"


def rule(*classes: type[Op]) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these op classes."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(classes, function))
        return function

    return register


def rule_of(cls: type[Op]) -> Rule | None:
    """The rule for ops of class `cls`."""
    return next((RULES[base] for base in cls.__mro__ if base in RULES), None)


def fresh(shape: Sequence[Size]) -> Axes:
    """Axes that nothing is known of."""
    return tuple(Axis(size) for size in shape)


def keep_sizes(op: Op, at: At) -> list[Axes]:
    """Nothing is known: no size of an operand or result may change."""
    results = [fresh(value.type.shape) for value in op.results]
    for axes in (*(at(v) for v in op.operands if v is not None), *results):
        for axis in axes:
            fix(axis, f"{op.opname} needs it as it is")
    return results


def broadcast(shape: Sequence[Size], operands: Sequence[Axes]) -> Axes:
    """The axes of a result of this shape that `operands` broadcast to; those of one size are one."""
    out: list[Axis] = []
    for back in range(len(shape), 0, -1):
        size = shape[-back]
        same = [axes[-back] for axes in operands if len(axes) >= back and axes[-back].size == size]
        for other in same[1:]:
            unify(same[0], other)
        out.append(same[0] if same else Axis(size))
    return tuple(out)


def with_axis(axes: Axes, axis: int, new: Axis) -> Axes:
    """`axes` with another one at `axis`, which is negative."""
    position = len(axes) + axis
    return (*axes[:position], new, *axes[position + 1 :])
