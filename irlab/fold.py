"""Constant expressions: which values are known before any input is, what they are, and how to write them down."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from .dims import Dim
from .extract import extract
from .ir import Op, Return, Value, Weight
from .ops import prim
from .ops.call import Call
from .types import TensorType
from .weights import Literal, WeightSymbol

if TYPE_CHECKING:
    import torch

SHAPE_ONLY: Final = (prim.Reshape, prim.Expand, prim.Transpose)
"""Ops that only arrange elements: they cost nothing, and say in which shape a reader wants them."""


def number_of(value: Value) -> prim.Number | None:
    """The number that fills `value`, if it is a constant."""
    return value.op.value if isinstance(value.op, prim.Constant) else None


class Known:
    """Which values are small and known before any input is: constants, static ranges, literals, and what small ops make
    of them. Nothing larger than `max_elements` counts, and no weight of a file: folding never reads a model."""

    def __init__(self, max_elements: int) -> None:
        self.max_elements = max_elements
        self._known: dict[Op, bool] = {}

    def __call__(self, op: Op) -> bool:
        """Whether `op` is known. Ask in topological order: operands first."""
        found = self._known.get(op)
        if found is None:
            found = self._known[op] = self._decide(op)
        return found

    def is_leaf(self, op: Op) -> bool:
        """Whether `op` is written down, and not computed."""
        return isinstance(op, prim.Constant | prim.Iota | Weight)

    def _decide(self, op: Op) -> bool:
        if isinstance(op, Return | Call) or op.region_names or not all(self._is_small(v.type) for v in op.results):
            return False
        if isinstance(op, Weight):
            return isinstance(op.symbol.recipe, Literal)
        if any(_is_symbolic(getattr(op, name)) for name in op.attribute_names):
            return False
        return all(value is None or (value.op is not None and self(value.op)) for value in op.operands)

    def _is_small(self, type: TensorType) -> bool:
        return type.encoding is None and not isinstance(type.size, Dim) and type.size <= self.max_elements


def _is_symbolic(attribute: object) -> bool:
    return any(map(_is_symbolic, attribute)) if isinstance(attribute, tuple) else isinstance(attribute, Dim)


def evaluate_constants(values: Sequence[Value]) -> list[torch.Tensor]:
    """What constant expressions come to. Raises IRError where one depends on a graph input."""
    from .interp import Program

    names = {str(i): value for i, value in enumerate(values)}
    results = Program(extract(names, {}))({})
    return [results[name] for name in names]


def write_down(tensor: torch.Tensor, type: TensorType) -> Value:
    """`tensor` as a detached value of `type`: a constant where one number fills it, else a weight with its numbers in
    the text. Weights of equal numbers get equal names."""
    numbers = tensor.reshape(-1).tolist()
    first = _key(numbers[0]) if numbers else ""
    if numbers and all(_key(number) == first for number in numbers):
        return prim.constant(numbers[0], type.dtype, type.shape)
    literal = Literal(type, tuple(numbers))
    digest = hashlib.sha256(f"{type}{numbers!r}".encode()).hexdigest()[:12]
    return prim.weight(WeightSymbol(f"folded.{digest}", literal))


def _key(number: float) -> str:
    # Tells 0.0 from -0.0, and takes one nan for another.
    return repr(number)
