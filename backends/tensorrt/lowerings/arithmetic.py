"""How are elementwise ops and comparisons said in TensorRT? Operands of one rank and dtype, few operations."""

from __future__ import annotations

from typing import Any, Final

from irlab.backends.tensorrt.emitter import Emitter, Lowering
from irlab.backends.tensorrt.library import ITensor, load
from irlab.ir import Op, Value
from irlab.ops import nn, prim
from irlab.types import bool_, i32

_BINARY: Final[dict[type[Op], str]] = {
    prim.Add: "SUM", prim.Sub: "SUB", prim.Mul: "PROD", prim.Div: "DIV", prim.Pow: "POW", prim.Maximum: "MAX",
    prim.Minimum: "MIN", prim.FloorDiv: "FLOOR_DIV", prim.Eq: "EQUAL", prim.Lt: "LESS", prim.Gt: "GREATER",
}  # fmt: skip
_LOGICAL: Final[dict[type[Op], str]] = {prim.And: "AND", prim.Or: "OR", prim.Xor: "XOR"}
"""On bool only."""

_UNARY: Final[dict[type[Op], str]] = {
    prim.Neg: "NEG", prim.Abs: "ABS", prim.Sign: "SIGN", prim.Exp: "EXP", prim.Log: "LOG", prim.Sqrt: "SQRT",
    prim.Reciprocal: "RECIP", prim.Sin: "SIN", prim.Cos: "COS", prim.Erf: "ERF", prim.Floor: "FLOOR",
    prim.Ceil: "CEIL", prim.Round: "ROUND", prim.IsNan: "ISNAN",
}  # fmt: skip

_ACTIVATIONS: Final[dict[type[Op], str]] = {prim.Relu: "RELU", prim.Tanh: "TANH", prim.Sigmoid: "SIGMOID"}


def elementwise(e: Emitter, operation: str, a: ITensor, b: ITensor) -> ITensor:
    """An elementwise layer on tensors of one rank."""
    return e.tensor("elementwise", a, b, getattr(load().ElementWiseOperation, operation))


def unary(e: Emitter, operation: str, x: ITensor) -> ITensor:
    """A unary layer."""
    return e.tensor("unary", x, getattr(load().UnaryOperation, operation))


def negation(e: Emitter, x: ITensor) -> ITensor:
    """The opposite of a bool tensor."""
    return unary(e, "NOT", x)


def _binary(op: Op, e: Emitter) -> None:
    e.bind(op.result, elementwise(e, {**_BINARY, **_LOGICAL}[type(op)], *e.aligned(*_operands(op))))


def _ne(op: prim.Ne, e: Emitter) -> None:
    e.bind(op.result, negation(e, elementwise(e, "EQUAL", *e.aligned(op.x, op.y))))


def _ordered(op: Op, e: Emitter) -> None:
    """a <= b as a < b or a == b, which is false for nan, as it should be."""
    a, b = e.aligned(*_operands(op))
    strict = elementwise(e, "LESS" if isinstance(op, prim.Le) else "GREATER", a, b)
    e.bind(op.result, elementwise(e, "OR", strict, elementwise(e, "EQUAL", a, b)))


def _mod(op: prim.Mod, e: Emitter) -> None:
    a, b = e.aligned(op.x, op.y)
    whole = elementwise(e, "PROD", elementwise(e, "FLOOR_DIV", a, b), b)
    e.bind(op.result, elementwise(e, "SUB", a, whole))


def _operands(op: Op) -> list[Value]:
    return [value for value in op.operands if value is not None]


def _unary(op: Any, e: Emitter) -> None:
    e.bind(op.result, _ranked(op.x, e, lambda x: unary(e, _UNARY[type(op)], x)))


def _ranked(value: Value, e: Emitter, apply: Any) -> ITensor:
    """`apply` on a tensor of rank 1 or more: unary and activation layers refuse rank 0."""
    if value.type.rank:
        return apply(e[value])
    return e.tensor("squeeze", apply(e.unsqueezed(e[value], range(1))), e.ints(0))


def _rsqrt(op: prim.Rsqrt, e: Emitter) -> None:
    e.bind(op.result, _ranked(op.x, e, lambda x: unary(e, "RECIP", unary(e, "SQRT", x))))


def _not(op: prim.Not, e: Emitter) -> None:
    if op.x.type.dtype is bool_:
        e.bind(op.result, _ranked(op.x, e, lambda x: negation(e, x)))
    else:  # all bits turned over are -1 - x
        e.bind(op.result, elementwise(e, "SUB", e.number(-1, op.x.type.dtype, op.x.type.rank), e[op.x]))


def activation(e: Emitter, kind: str, x: ITensor) -> ITensor:
    """An activation layer."""
    return e.tensor("activation", x, getattr(load().ActivationType, kind))


def _activation(op: Any, e: Emitter) -> None:
    e.bind(op.result, _ranked(op.x, e, lambda x: activation(e, _ACTIVATIONS[type(op)], x)))


def _gelu(op: nn.Gelu, e: Emitter) -> None:
    kind = "GELU_TANH" if op.approximate == "tanh" else "GELU_ERF"
    e.bind(op.result, _ranked(op.x, e, lambda x: activation(e, kind, x)))


def _where(op: prim.Where, e: Emitter) -> None:
    condition, x, y = e.aligned(op.condition, op.x, op.y)
    if op.x.type.dtype is bool_:
        chosen = e.tensor("select", condition, e.cast(x, i32), e.cast(y, i32))
        e.bind(op.result, e.cast(chosen, bool_))
    else:
        e.result(op, "select", condition, x, y)


def _cast(op: prim.Cast, e: Emitter) -> None:
    from irlab.ir import Weight

    producer = op.x.op
    if isinstance(producer, Weight) and producer.symbol.type.encoding is not None:
        e.bind(op.result, e.decoded(producer.symbol, op.dtype))
    elif op.x.type.dtype.is_float and op.dtype is bool_:
        zero = e.number(0.0, op.x.type.dtype, op.x.type.rank)
        e.bind(op.result, negation(e, elementwise(e, "EQUAL", e[op.x], zero)))
    else:
        e.bind(op.result, e.cast(e[op.x], op.dtype))


LOWERINGS: Final[dict[type[Op], Lowering]] = {
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_LOGICAL, _binary),
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_ACTIVATIONS, _activation),
    prim.Ne: _ne,
    prim.Le: _ordered,
    prim.Ge: _ordered,
    prim.Mod: _mod,
    prim.Rsqrt: _rsqrt,
    prim.Not: _not,
    prim.Where: _where,
    prim.Cast: _cast,
    nn.Gelu: _gelu,
}
