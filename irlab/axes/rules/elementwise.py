"""Axes through ops that work element by element, and through literals."""

from __future__ import annotations

from ...ir import Op
from ...ops import nn, prim
from ...ops.elementwise import Arithmetic, Binary, Bitwise, Compare, FloatUnary, Unary
from ..axis import fix, mark
from .base import ACTIVATED, At, Axes, broadcast, fresh, rule


@rule(Binary, Arithmetic, Compare, Bitwise, prim.Where, prim.Cast, Unary)
def _elementwise(op: Op, at: At) -> list[Axes]:
    return [broadcast(op.results[0].type.shape, [at(v) for v in op.operands if v is not None])]


@rule(FloatUnary, prim.Relu, prim.Maximum, prim.Minimum, nn.Gelu, nn.Silu)
def _activation(op: Op, at: At) -> list[Axes]:
    (axes,) = _elementwise(op, at)
    for axis in axes:
        mark(axis, ACTIVATED)
    return [axes]


@rule(prim.Constant)
def _constant(op: prim.Constant, at: At) -> list[Axes]:
    return [fresh(op.type.shape)]


@rule(prim.Iota)
def _iota(op: prim.Iota, at: At) -> list[Axes]:
    (axis,) = fresh((op.size,))
    fix(axis, "its indices are numbers")
    return [(axis,)]


@rule(prim.DimOf)
def _dim(op: prim.DimOf, at: At) -> list[Axes]:
    fix(at(op.x)[op.axis], "its size is a number")
    return [()]
