"""What does an op cost, and what does a value weigh? Floating-point operations and bytes, as polynomials of sizes.

A multiplication, an addition, a comparison or one value of an elementary function of floats counts as one operation, so
a matrix product [m, k] @ [k, n] is 2mkn. Moving, selecting and converting numbers counts as none, and so does integer
arithmetic. An nn op costs what its decomposition costs: attention the whole rectangle of scores, because that is what
it means; a kernel that skips what a mask hides does less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final

from .dims import Size, maximum, product, substitute, symbols
from .ir import Op, Return, Value, Weight
from .ops import control, nn, prim


def _per_output(op: Op) -> Size:
    """One operation for each element of the result, of floats."""
    return op.results[0].type.size if _is_float(op) else 0


def _per_input(op: Op) -> Size:
    """One operation for each element of the first operand, each of which is looked at once."""
    return op.operands[0].type.size if op.operands[0] is not None and _is_float(op) else 0


def _is_float(op: Op) -> bool:
    return op.operands[0] is not None and op.operands[0].type.dtype.is_float


def _matmul(op: prim.MatMul) -> Size:
    return 2 * op.result.type.size * op.x.type.shape[-1]


def _conv(op: prim.Conv) -> Size:
    return op.result.type.size * (2 * product(op.weight.type.shape[1:]) + (op.bias is not None))


def _pool(op: prim.MaxPool | prim.AvgPool) -> Size:
    return op.result.type.size * product(op.kernel)


def _nothing(op: Op) -> Size:
    return 0


FORMULAS: Final[dict[type, Callable[[Any], Size]]] = {
    prim.MatMul: _matmul,
    prim.Conv: _conv,
    prim.MaxPool: _pool,
    prim.AvgPool: _pool,
    prim.Unary: _per_output,
    prim.Binary: _per_output,
    prim.Reduce: _per_input,
    prim.ArgMax: _per_input,
    prim.CumSum: _per_input,
    prim.TopK: _per_input,
    **dict.fromkeys((Return, Weight, prim.Constant, prim.Iota, prim.DimOf, prim.Cast, prim.Where), _nothing),
    **dict.fromkeys(
        (prim.Reshape, prim.Transpose, prim.Expand, prim.Slice, prim.Concat, prim.Split, prim.Pad), _nothing
    ),
    **dict.fromkeys((prim.Gather, prim.GatherElements, prim.Scatter), _nothing),
}
"""The formula of an op class and of the classes derived from it. Ops of `nn` have none: they decompose."""

_decomposed: dict[tuple[object, ...], Size | None] = {}


def flops(op: Op) -> Size | None:
    """The floating-point operations of `op`; None where nobody knows (an opaque call). Of two branches, the dearer."""
    formula = _formula(type(op))
    if formula is not None:
        return formula(op)
    if isinstance(op, nn.NNOp):
        # Layers repeat: what counts is known by the class, the types and the attributes.
        types = [None if v is None else v.type for v in op.operands]
        key = (type(op), *types, *[getattr(op, name) for name in op.attribute_names])
        if key not in _decomposed:
            _decomposed[key] = total_flops(_decomposition(op))
        return _decomposed[key]
    if isinstance(op, control.If):
        then, else_ = (total_flops(region.ops()) for region in op.regions)
        return None if then is None or else_ is None else maximum(then, else_)
    return None


def total_flops(ops: Iterable[Op]) -> Size | None:
    """The sum over `ops`; None where one of them is not known."""
    total: Size = 0
    for op in ops:
        cost = flops(op)
        if cost is None:
            return None
        total = total + cost
    return total


@cache
def _formula(cls: type[Op]) -> Callable[[Any], Size] | None:
    return next((FORMULAS[ancestor] for ancestor in cls.__mro__ if ancestor in FORMULAS), None)


def _decomposition(op: nn.NNOp) -> Iterable[Op]:
    """The ops of a decomposition, down to the operands."""
    meaning = op.decompose()
    stack: list[Value] = list(meaning if isinstance(meaning, tuple) else (meaning,))
    given = {id(value) for value in op.operands}
    found: dict[Op, None] = {}
    while stack:
        value = stack.pop()
        if id(value) not in given and value.op is not None and value.op not in found:
            found[value.op] = None
            stack += [v for v in value.op.operands if v is not None]
    return found


Sizes = Mapping[str, int]
"""What the symbolic sizes are taken to be: {"batch": 1, "seq": 512}."""

DEFAULT_SIZES: Final[Sizes] = {"batch": 1, "seq": 512, "past": 0}


def at(size: Size | None, sizes: Sizes) -> int:
    """A polynomial as a number; symbols that `sizes` does not name count as 1, and what is not known as 0."""
    if size is None or isinstance(size, int):
        return size or 0
    known = substitute(size, {name: sizes.get(name, 1) for name in symbols(size)})
    assert isinstance(known, int)
    return known
