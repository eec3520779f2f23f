"""The verifier finds each way in which a module can break the rules, and shows the place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings

from irlab import GraphBuilder, nn, prim
from irlab.errors import IRError
from irlab.ir import Graph, Module, Return, Value, Weight
from irlab.ops.control import if_
from irlab.testing.strategies import modules
from irlab.types import bool_, f32, i64, tensor
from irlab.verify import verify
from irlab.weights import Random, WeightSymbol

VECTOR = tensor(f32, (4,))


def chain(length: int = 12) -> Module:
    b = GraphBuilder("chain")
    value = b.input("x", "f32", (4,))
    weight = b.random_weight("norm.weight", "f32", (4,))
    for i in range(length):
        value = b.add(nn.rms_norm(value, weight), f"layers.{i}")
    b.output(y=value)
    return b.module()


def branch(then: Graph | None = None) -> Module:
    b = GraphBuilder()
    x = b.input("x", "f32", (4,))
    b.output(y=if_(prim.constant(True, bool_), (x,), then or region(), region())[0])
    return b.module()


def region() -> Graph:
    graph = Graph()
    graph.output(y=prim.neg(graph.input("a", VECTOR)))
    return graph


@settings(max_examples=50)
@given(modules())
def test_valid_modules_pass(module: Module) -> None:
    verify(module)
    verify(module.clone())


def test_a_fault_shows_the_lines_around_it() -> None:
    module = chain()
    op = module.graph.find(nn.RMSNorm)[6]
    op.results[0].type = tensor(f32, (5,))
    with pytest.raises(IRError) as caught:
        verify(module)
    assert caught.value.op is op
    assert caught.value.exit_status == 3
    message, *lines = str(caught.value).splitlines()
    assert message == "nn.rms_norm at layers.6: its type is f32[5], but its operands and attributes give f32[4]"
    assert lines[5] == '--> %6  = nn.rms_norm(%5, @norm.weight) {eps=1e-06}  : f32[5]  loc("layers.6")'
    assert [line[:9].split()[0] for line in lines if not line.startswith("-->")] == [
        *("%1", "%2", "%3", "%4", "%5", "%7", "%8", "%9", "%10", "%11")
    ]


def wrong_type(module: Module) -> None:
    module.graph.find(nn.RMSNorm)[0].results[0].type = tensor(i64, (4,))


def wrong_operand_type(module: Module) -> None:
    module.graph.inputs[0].type = tensor(i64, (4,))


def operand_of_another_graph(module: Module) -> None:
    other = chain().graph
    op = module.graph.find(nn.RMSNorm)[3]
    op.operands = (other.find(nn.RMSNorm)[0].results[0], *op.operands[1:])


def input_of_another_graph(module: Module) -> None:
    op = module.graph.find(nn.RMSNorm)[3]
    op.operands = (Value(None, VECTOR, "z"), *op.operands[1:])


def detached_operand(module: Module) -> None:
    op = module.graph.find(nn.RMSNorm)[3]
    op.operands = (prim.neg(module.graph.inputs[0]), *op.operands[1:])


def missing_operand(module: Module) -> None:
    op = module.graph.find(nn.RMSNorm)[3]
    op.operands = (None, None)


def forgotten_use(module: Module) -> None:
    module.graph.inputs[0].uses.clear()


def miscounted_use(module: Module) -> None:
    uses = module.graph.inputs[0].uses
    for op in uses:
        uses[op] = 2


def stale_use(module: Module) -> None:
    module.graph.inputs[0].uses[module.graph.find(nn.RMSNorm)[5]] = 1


def stale_use_by_an_erased_op(module: Module) -> None:
    module.graph.inputs[0].uses[prim.neg(module.graph.inputs[0]).op] = 1  # type: ignore[index]


def cycle(module: Module) -> None:
    first, second = module.graph.find(nn.RMSNorm)[:2]
    module.graph.set_operand(first, 0, second.results[0])


def no_return(module: Module) -> None:
    module.graph.index.pop(Return)
    for value in module.graph.find(nn.RMSNorm)[-1].results:
        value.uses.clear()


def two_returns(module: Module) -> None:
    module.graph.add(Return((module.graph.inputs[0],), ("z",)))


def outputs_of_one_name(module: Module) -> None:
    module.graph.return_op.names = ("y", "y")
    module.graph.return_op.operands *= 2
    for value in module.graph.return_op.operands:
        value.uses[module.graph.return_op] = 2  # type: ignore[union-attr]


def inputs_of_one_name(module: Module) -> None:
    module.graph.inputs.append(Value(None, VECTOR, "x"))


def nameless_input(module: Module) -> None:
    module.graph.inputs.append(Value(None, VECTOR))


def input_with_a_producer(module: Module) -> None:
    module.graph.inputs.append(module.graph.find(nn.RMSNorm)[0].results[0])


def two_weights_of_one_name(module: Module) -> None:
    module.graph.add(Weight(WeightSymbol("norm.weight", Random(VECTOR, 9))))


def wrong_partition(module: Module) -> None:
    op = module.graph.find(nn.RMSNorm)[0]
    del module.graph.index[nn.RMSNorm][op]
    module.graph.index[prim.Neg] = {op: None}


def unlisted_op(module: Module) -> None:
    del module.graph.index[nn.RMSNorm][module.graph.find(nn.RMSNorm)[0]]


def forgotten_graph(module: Module) -> None:
    module.graph.find(nn.RMSNorm)[0].graph = None


def stolen_result(module: Module) -> None:
    first, second = module.graph.find(nn.RMSNorm)[:2]
    first.results[0].op = second


FAULTS: dict[Callable[[Module], None], str] = {
    wrong_type: "its type is i64",
    wrong_operand_type: "needs a floating-point operand",
    operand_of_another_graph: "reads a result of nn.rms_norm in another graph",
    input_of_another_graph: "reads the input %z of another graph",
    detached_operand: "was erased or never attached",
    missing_operand: "the operand 'x' is missing",
    forgotten_use: "reads %x 1 times, but 0 uses are recorded",
    miscounted_use: "reads %x 1 times, but 2 uses are recorded",
    stale_use: "a use of %x by nn.rms_norm is recorded, but it does not read it",
    stale_use_by_an_erased_op: "a use of %x by prim.neg is recorded",
    cycle: "depends on itself",
    no_return: "returns nothing",
    two_returns: "has 2 returns",
    outputs_of_one_name: "two outputs have one name",
    inputs_of_one_name: "two inputs are called %x",
    nameless_input: "an input has no name",
    input_with_a_producer: "listed among the inputs",
    two_weights_of_one_name: "two different weights are called @norm.weight",
    wrong_partition: "stands under prim.neg",
    unlisted_op: "reads a value that nn.rms_norm does not give",
    forgotten_graph: "does not belong to the graph that lists it",
    stolen_result: "a result of it belongs to another op",
}


@pytest.mark.parametrize("break_it", FAULTS, ids=lambda fault: fault.__name__)
def test_faults_are_found(break_it: Callable[[Module], None]) -> None:
    module = chain()
    verify(module)
    break_it(module)
    with pytest.raises(IRError) as caught:
        verify(module)
    assert FAULTS[break_it] in str(caught.value)


def test_a_region_reads_nothing_from_outside() -> None:
    module = branch()
    inner = next(iter(module.graph.region_ops())).regions[0]
    neg = inner.find(prim.Neg)[0]
    inner.inputs[0].uses.clear()
    neg.operands = (module.graph.inputs[0],)
    with pytest.raises(IRError, match="must be an operand of its op"):
        verify(module)


def test_a_fault_in_a_region_says_which() -> None:
    module = branch()
    next(iter(module.graph.region_ops())).regions[1].find(prim.Neg)[0].results[0].type = tensor(f32, (1,))
    with pytest.raises(IRError, match=r"in the region 'else_' of ctl.if: prim.neg: its type is f32\[1\]"):
        verify(module)


def test_a_region_belongs_to_one_op() -> None:
    shared = region()
    b = GraphBuilder()
    x = b.input("x", "f32", (4,))
    b.output(y=if_(prim.constant(True, bool_), (x,), shared, shared)[0])
    with pytest.raises(IRError, match="belongs to another op too"):
        verify(b.module())


def test_one_weight_name_in_a_region_and_outside() -> None:
    inner = Graph()
    a = inner.input("a", VECTOR)
    inner.output(y=prim.add(a, prim.weight(WeightSymbol("w", Random(VECTOR, 1)))))
    module = branch(inner)
    verify(module)
    module.graph.add(Weight(WeightSymbol("w", Random(VECTOR, 2))))
    with pytest.raises(IRError, match="two different weights are called @w"):
        verify(module)


def test_regions_that_disagree_are_found_by_the_op() -> None:
    module = branch()
    next(iter(module.graph.region_ops())).regions[0].set_outputs({})
    with pytest.raises(IRError, match="the two regions give different types"):
        verify(module)
