"""The opaque call: an ATen op that has no primitive keeps its name, runs in the interpreter and round-trips."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ..dims import Dim
from ..errors import IRError
from ..ir import Op, Value, expressions
from ..types import DType, TensorType

_TARGET: Final = re.compile(r"aten\.[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*")
_OPERAND: Final = re.compile(r"%(0|[1-9][0-9]{0,8})")


class Call(Op, opname="call"):
    """Calls the ATen overload `target` ("aten.nonzero.default"), printed as `call @aten.nonzero.default(...)`.

    `args` holds the tensor operands in the order in which they are mentioned. `arguments` is the argument list of the
    overload's schema, keyword-only arguments at their place in it; defaults at its end may be left out. Each is one of

    * `"%0"`, `"%1"` ...: the operand of that index (an ATen string never begins with a percent sign);
    * a bool, int, float or str: itself; a symbolic size: the integer that it is at run time;
    * a dtype (`f32`): the torch dtype;
    * a tuple of arguments: a list, for example `("%1", None, "%2")` for the indices of `aten.index.Tensor`;
    * None: itself; also what stands for devices, layouts and memory formats, which are the executor's matter.

    `result_types` has one type per tensor that the overload returns; a size known only at run time is a symbol of its
    own (`u0`), which is bound when the call has run. An overload may be random, so calls are never merged.
    """

    args: tuple[Value, ...]
    target: str
    arguments: tuple[object, ...]
    result_types: tuple[TensorType, ...]

    def infer(self) -> tuple[TensorType, ...]:
        if not _TARGET.fullmatch(self.target):
            raise IRError(f"call @{self.target}: the target must read aten.<op>.<overload>", op=self)
        mentioned = {operand_index(leaf) for leaf in self.leaves()} - {None}
        if mentioned != set(range(len(self.args))):
            raise IRError(
                f"call @{self.target} has {len(self.args)} operands, and its arguments mention "
                f"{', '.join(f'%{i}' for i in sorted(i for i in mentioned if i is not None)) or 'none'}",
                op=self,
            )
        return self.result_types

    def leaves(self) -> Iterator[object]:
        """Every argument that is no tuple, in order."""
        stack: list[object] = list(reversed(self.arguments))
        while stack:
            argument = stack.pop()
            if isinstance(argument, tuple):
                stack.extend(reversed(argument))
            else:
                yield argument


def operand_index(argument: object) -> int | None:
    """The operand that an argument stands for ("%2" -> 2), or None for any other argument."""
    found = _OPERAND.fullmatch(argument) if isinstance(argument, str) else None
    return int(found[1]) if found else None


def bind(
    argument: object,
    operands: Sequence[object],
    dtype: Callable[[DType], object],
    size: Callable[[Dim], object],
) -> Any:
    """`argument` as an executor takes it: operands, dtypes and symbolic sizes in its own form, tuples as lists."""
    if isinstance(argument, tuple):
        return [bind(item, operands, dtype, size) for item in argument]
    index = operand_index(argument)
    if index is not None:
        return operands[index]
    if isinstance(argument, DType):
        return dtype(argument)
    return size(argument) if isinstance(argument, Dim) else argument


call = expressions(Call)
