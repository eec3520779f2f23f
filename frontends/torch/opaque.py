"""How an ATen op without a lowering is kept: as `call @aten.name.overload`, its arguments as data (see ops/call.py)."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from irlab.dims import Dim
from irlab.errors import InputError
from irlab.frontends.torch.export import overload_name
from irlab.ir import Value
from irlab.ops.call import call
from irlab.types import DType

if TYPE_CHECKING:
    from irlab.frontends.torch.lower import Site

_ABSENT: Final[Any] = object()

MEMORY_KEYWORDS = frozenset({"layout", "device", "pin_memory", "memory_format", "non_blocking", "copy", "generator"})
"""Keyword arguments of ATen ops that say where and how numbers lie in memory, not what they are."""


def opaque_call(site: Site) -> tuple[Value, ...]:
    """The node of `site` as a call with the types that torch says its results have."""
    node = site.node
    target = overload_name(node.target)
    if not target.startswith("aten.") or not hasattr(node.target, "_schema"):
        raise InputError(f"{target} is no ATen operator, and there is no lowering for it", site.place)
    schema = node.target._schema.arguments
    last = max([len(node.args), *(i + 1 for i, a in enumerate(schema) if a.name in node.kwargs)])
    operands: list[Value] = []
    arguments = []
    for argument, positional in zip_longest(schema[:last], node.args, fillvalue=_ABSENT):
        default = argument.default_value if argument.has_default_value() else None
        given = node.kwargs.get(argument.name, default) if positional is _ABSENT else positional
        arguments.append(None if argument.name in MEMORY_KEYWORDS else _encode(site.lift.resolve(given), operands))
    return call(tuple(operands), target, tuple(arguments), site.types)


def _encode(given: Any, operands: list[Value]) -> object:
    if isinstance(given, Value):
        if given not in operands:
            operands.append(given)
        return f"%{operands.index(given)}"
    if isinstance(given, tuple):
        return tuple([_encode(item, operands) for item in given])
    return given if isinstance(given, (bool, int, float, str, Dim, DType)) else None
