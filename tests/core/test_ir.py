"""Graphs: attaching, replacing and erasing keep uses, partitions and order right."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from irlab import GraphBuilder, nn, prim
from irlab.errors import IRError, TypeInferenceError
from irlab.ir import Graph, Op, Value
from irlab.opdef import OPS
from irlab.types import f32, tensor
from irlab.weights import Random, WeightSymbol

VECTOR = tensor(f32, (4,))


def chain(length: int) -> tuple[Graph, Value]:
    graph = Graph()
    x = value = graph.input("x", VECTOR)
    for _ in range(length):
        value = prim.add(value, x)
    graph.output(y=value)
    return graph, x


def test_a_long_detached_chain_is_attached_and_erased_without_recursion() -> None:
    graph, x = chain(20_000)
    assert len(graph.find(prim.Add)) == 20_000
    graph.output(y=x)
    assert graph.find(prim.Add) == []
    assert list(x.uses) == [graph.return_op]


def test_topological_order_survives_replacement_in_the_middle() -> None:
    graph, x = chain(5)
    middle = graph.find(prim.Add)[2]
    graph.replace(middle, prim.mul(prim.neg(x), x), made_by="test")
    seen: set[Value] = set(graph.inputs)
    for op in graph.topo():
        assert all(v in seen for v in op.operands)
        seen.update(op.results)
    new = graph.find(prim.Mul)[0]
    assert new.loc is not None and new.loc.made_by == "test"


def test_operands_used_twice_are_counted_twice() -> None:
    graph = Graph()
    x = graph.input("x", VECTOR)
    op = graph.add(prim.Mul(x, x))
    assert x.uses == {op: 2}
    graph.set_operand(op, 0, prim.neg(x))
    assert x.uses[op] == 1
    graph.output(y=x)
    graph.erase(op)
    assert list(x.uses) == [graph.return_op]
    assert not graph.find(prim.Neg)


def test_values_of_another_graph_are_refused() -> None:
    one, two = Graph(), Graph()
    value = one.add(prim.Neg(one.input("x", VECTOR))).result
    with pytest.raises(IRError, match="another graph"):
        two.add(prim.Neg(value))


def test_types_are_inferred_when_an_op_is_built() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", ("batch", "seq", 8))
    w = b.random_weight("w", "f32", (16, 8))
    assert str(nn.linear(x, w).type) == "f32[batch, seq, 16]"
    with pytest.raises(TypeInferenceError, match="do not fit"):
        nn.linear(nn.linear(x, w), w)


def test_axes_are_stored_from_the_end() -> None:
    x = GraphBuilder().input("x", "f32", (2, 3, 4))
    mean = prim.Mean(x, (1, 2))
    assert mean.axes == (-2, -1)
    assert mean.result.type.shape == (2, 1, 1)
    with pytest.raises(TypeInferenceError, match="axis 3"):
        prim.Mean(x, (3,))


def test_an_unused_weight_is_no_longer_a_weight_of_the_module() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", (4,))
    w = b.weight(WeightSymbol("w", Random(VECTOR)))
    b.output(y=prim.add(x, w))
    module = b.module()
    assert list(module.weights) == ["w"]
    module.graph.output(y=x)
    assert list(module.weights) == []


def test_a_clone_changes_alone() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", (4,))
    b.output(y=prim.add(x, b.random_weight("w", "f32", (4,))))
    module = b.module()
    copy = module.clone()
    copy.graph.output(y=copy.graph.inputs[0])
    assert len(module.graph.find(prim.Add)) == 1
    assert len(copy.graph.find(prim.Add)) == 0


def test_erase_dead_keeps_what_outputs_need() -> None:
    graph, x = chain(3)
    graph.add(prim.Neg(graph.add(prim.Exp(x)).result))
    assert graph.erase_dead() == 2
    assert len(graph.find(prim.Add)) == 3
    assert set(x.uses) == set(graph.find(prim.Add))


def test_annotations_may_be_objects() -> None:
    """As in a module without `from __future__ import annotations`."""
    source = """
class Gathered(Op, opname="test.gathered"):
    first: Value
    mask: Value | None
    rest: tuple[Value, ...]
    scale: float | None = None
    hidden: ClassVar[int] = 0
"""
    scope: dict[str, Any] = {"Op": Op, "Value": Value, "ClassVar": ClassVar, "__name__": __name__}
    try:
        exec(compile(source, "<test>", "exec", dont_inherit=True), scope)
        kinds = {field.name: field.kind.name for field in scope["Gathered"].fields}
    finally:
        OPS.pop("test.gathered", None)
    assert kinds == {
        "first": "OPERAND",
        "mask": "OPTIONAL",
        "rest": "VARIADIC",
        "scale": "ATTRIBUTE",
    }
