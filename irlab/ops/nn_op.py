"""The base of the LLM-level ops, and what their meanings have in common."""

from __future__ import annotations

from typing import ClassVar

from ..errors import IRError
from ..ir import Op, Value
from ..types import f32
from . import prim


class NNOp(Op):
    """An op of this dialect. `matrices` names the operands that are weight matrices [out, in] of a matrix product,
    `stacks` those that hold several in one tensor [n, out, in], each of which some rows of its input meet."""

    matrices: ClassVar[tuple[str, ...]] = ()
    stacks: ClassVar[tuple[str, ...]] = ()

    def decompose(self) -> Value | tuple[Value, ...]:
        """The meaning of the op: a detached expression over its operands in simpler ops, one per result."""
        raise IRError(f"{self.opname} has no decomposition", op=self)


def in_f32(x: Value) -> Value:
    """x, cast to f32 if it is not."""
    return x if x.type.dtype is f32 else prim.cast(x, f32)


def to_dtype_of(x: Value, like: Value) -> Value:
    """x, cast to the dtype of `like` if it has another."""
    return x if x.type.dtype is like.type.dtype else prim.cast(x, like.type.dtype)


def like(number: float, x: Value) -> Value:
    """A constant in the dtype of x."""
    return prim.constant(number, x.type.dtype)


def swap_last(x: Value) -> Value:
    """x with its last two axes exchanged."""
    rank = x.type.rank
    return prim.transpose(x, (*range(rank - 2), rank - 1, rank - 2))
