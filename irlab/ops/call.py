"""The opaque call: an ATen op that has no primitive keeps its name, runs in the interpreter and round-trips."""

from __future__ import annotations

from ..ir import Op, Value, expressions
from ..types import TensorType


class Call(Op, opname="call"):
    """Calls `target` ("aten.nonzero.default"), printed as `call @aten.nonzero.default(...)`.

    `args` holds the tensor operands in the order of the ATen schema; `arguments` is that schema's argument list, in
    which a tensor stands as its operand index and everything else as itself: see `frontends.torch`.
    """

    args: tuple[Value, ...]
    target: str
    arguments: tuple[object, ...]
    result_types: tuple[TensorType, ...]

    def infer(self) -> tuple[TensorType, ...]:
        return self.result_types


call = expressions(Call)
