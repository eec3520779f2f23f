"""How an ATen op without a lowering is kept: as `call @aten.name.overload`, its arguments as data (see ops/call.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from irlab.dims import Dim
from irlab.errors import InputError
from irlab.frontends.torch.export import overload_name
from irlab.ir import Value
from irlab.ops.call import Call
from irlab.types import DType

if TYPE_CHECKING:
    from irlab.frontends.torch.lower import Site

MEMORY_KEYWORDS = frozenset({"layout", "device", "pin_memory", "memory_format", "non_blocking", "copy", "generator"})
"""Keyword arguments of ATen ops that say where and how numbers lie in memory, not what they are."""


def opaque_call(site: Site) -> tuple[Value, ...]:
    """The node of `site` as a call with the types that torch says its results have."""
    node = site.node
    target = overload_name(node.target)
    if not target.startswith("aten."):
        raise InputError(f"{target} is no ATen operator, and there is no lowering for it", site.place)
    operands: list[Value] = []
    arguments = tuple([_encode(site.lift.resolve(a), operands) for a in node.args])
    keywords = tuple(
        [(k, _encode(site.lift.resolve(v), operands)) for k, v in node.kwargs.items() if k not in MEMORY_KEYWORDS]
    )
    return Call(tuple(operands), target, arguments, site.types, keywords).results


def _encode(given: Any, operands: list[Value]) -> object:
    if isinstance(given, Value):
        if given not in operands:
            operands.append(given)
        return f"%{operands.index(given)}"
    if isinstance(given, tuple):
        return tuple([_encode(item, operands) for item in given])
    return given if isinstance(given, (bool, int, float, str, Dim, DType)) else None
