"""Axes through calls and regions, and at the outputs of a graph."""

from __future__ import annotations

from ...ir import Return
from ...ops import control
from ...ops.call import Call
from ..axis import fix, unify
from .base import At, Axes, keep_sizes, rule


@rule(Return)
def _return(op: Return, at: At) -> list[Axes]:
    for name, value in zip(op.names, op.values):
        for axis in at(value):
            fix(axis, f"the output '{name}' has it")
    return []


@rule(Call)
def _call(op: Call, at: At) -> list[Axes]:
    return keep_sizes(op, at)


@rule(control.If)
def _if(op: control.If, at: At) -> list[Axes]:
    """The regions are walked before; here the two ways come together."""
    branches = [[at(value) for value in region.outputs.values()] for region in op.regions]
    for region in op.regions:
        for inner, outer in zip(region.inputs, op.inputs):
            for a, b in zip(at(inner), at(outer)):
                unify(a, b)
    for a_axes, b_axes in zip(*branches):
        for a, b in zip(a_axes, b_axes):
            unify(a, b)
    return branches[0]
