"""The constant-folding pass: what can be computed now is not computed at run time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final

from irlab import Context, Module, Op, Pass, Value, prim
from irlab.fold import SHAPE_ONLY, Known, evaluate_constants, number_of, write_down
from irlab.ir import Graph
from irlab.ops.elementwise import Binary, Unary
from irlab.options import Bounds

_ELEMENTWISE: Final = (Binary, Unary, prim.Where, prim.Cast)


@dataclass(frozen=True)
class ConstantFolding(Pass, name="constant-folding"):
    """Computes constant expressions now: to a constant, or to a small weight with its numbers in the text.

        %1 = prim.mul(2.0, 3.0)                          ->  6.0
        %2 = prim.expand(1.0) {shape=[batch, seq]}       ->  a constant of that shape, also a symbolic one
        %3 = prim.pow(10000.0, %small)                   ->  @folded.5f1c...

    `max-elements` bounds what is computed and written down. Weights in files are never read. A reshape, expand or
    transpose of a weight stays: it costs nothing, and patterns look for it.
    """

    max_elements: Annotated[int, Bounds(1)] = field(default=4096, metadata={"text": "max-elements"})

    def run(self, module: Module, ctx: Context) -> None:
        ctx.note_rewrites(self._fold(module.graph))

    def _fold(self, graph: Graph) -> dict[str, int]:
        hits = {"uniform": _fold_uniform(graph), "small": _fold_small(graph, self.max_elements)}
        for op in list(graph.region_ops()):
            for region in op.regions:
                for name, count in self._fold(region).items():
                    hits[name] += count
        return hits


def _fold_uniform(graph: Graph) -> int:
    """Fold ops on constants alone whose result is one number throughout, of any size; returns how many."""
    found = 0
    for op in graph.topo():
        if isinstance(op, (*_ELEMENTWISE, *SHAPE_ONLY)) and all(number_of(v) is not None for v in op.operands if v):
            number = _number(op)
            graph.replace(op, prim.constant(number, op.results[0].type.dtype, op.results[0].type.shape))
            found += 1
    return found


def _number(op: Op) -> prim.Number:
    """The number that an elementwise or shape-only op makes of the numbers that fill its operands."""
    operands = [v.op for v in op.operands if v is not None and isinstance(v.op, prim.Constant)]
    if isinstance(op, SHAPE_ONLY):
        return operands[0].value
    scalars = [prim.constant(operand.value, operand.type.dtype) for operand in operands]
    (result,) = evaluate_constants([op.rebuild(scalars).results[0]])
    number: prim.Number = result.item()
    return number


def _fold_small(graph: Graph, max_elements: int) -> int:
    """Fold the largest constant expressions with small results; returns how many ops were folded into one."""
    known = Known(max_elements)
    roots: dict[Value, None] = {}
    for op in graph.topo():
        if known(op):
            continue
        for value in op.operands:
            root = _beneath_shape_ops(value)
            if root is not None and root.op is not None and known(root.op) and not known.is_leaf(root.op):
                roots[root] = None
    for root, tensor in zip(roots, evaluate_constants(list(roots)) if roots else ()):
        new = write_down(tensor, root.type)
        assert root.op is not None and new.op is not None
        graph.attach(new.op, root.op.seq, root.op.loc)
        graph.replace_uses(root, new)
    if roots:
        graph.erase_dead()
    return len(roots)


def _beneath_shape_ops(value: Value | None) -> Value | None:
    while value is not None and isinstance(value.op, SHAPE_ONLY):
        value = value.op.x
    return value
