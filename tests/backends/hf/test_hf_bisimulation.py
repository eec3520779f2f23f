"""The comparison of graphs: what it looks past, and what it finds first."""

from __future__ import annotations

from pathlib import Path

import pytest

from irlab import GraphBuilder, nn, prim
from irlab.backends.hf.bisimulation import compare
from irlab.ir import Graph, Value
from irlab.types import f32, tensor
from irlab.weights import File, Literal, WeightSymbol


def file(name: str, *shape: int) -> WeightSymbol:
    """A weight of a checkpoint that is not there."""
    return WeightSymbol(name, File(Path("absent.safetensors"), name, tensor("f32", shape)))


def table(name: str, *values: float) -> WeightSymbol:
    """A computed buffer."""
    return WeightSymbol(name, Literal(tensor("f32", (len(values),)), values))


def mlp(*names: str, eps: float = 1e-6, bias: bool = False, swap: bool = False, width: int = 6) -> Graph:
    """y = x + linear(rms_norm(x)), with weights of these names."""
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", 4))
    norm, up, down = (
        b.weight(file(n, *s)) for n, s in zip(names or ("norm", "up", "down"), ((4,), (width, 4), (4, width)))
    )
    h = b.add(nn.rms_norm(x, norm, eps=eps), "norm")
    h = b.add(nn.linear(h, up, b.weight(file("b", width)) if bias else None), "up")
    h = b.add(nn.linear(nn.silu(h), down), "down")
    b.output(y=prim.add(h, x) if swap else prim.add(x, h))
    return b.module().graph


def test_equal_graphs_pair_their_weights_by_place() -> None:
    found = compare(mlp("a", "b", "c"), mlp())
    assert found.difference is None
    assert {name: symbol.name for name, symbol in found.weights.items()} == {"norm": "a", "up": "b", "down": "c"}


def test_operands_of_commutative_ops_may_be_exchanged() -> None:
    assert compare(mlp(swap=True), mlp()).difference is None


@pytest.mark.parametrize(
    ("graph", "place", "found", "expected"),
    [
        (mlp(eps=1e-5), "nn.rms_norm at norm", "eps=1e-05", "eps=1e-06"),
        (mlp(bias=True), "nn.linear at up", "bias from a weight", "no bias"),
        (mlp(width=8), "prim.weight", "'up': f32[8, 4]", "'up': f32[6, 4]"),
    ],
)
def test_the_first_difference_is_named(graph: Graph, place: str, found: str, expected: str) -> None:
    difference = compare(graph, mlp()).difference
    assert difference is not None
    assert (difference.place, difference.found, difference.expected) == (place, found, expected)


def test_the_earliest_of_several_differences_is_named() -> None:
    """Though the walk starts at the outputs."""

    def chain(eps: float) -> Graph:
        b = GraphBuilder()
        x = b.input("x", "f32", ("n", 4))
        for i in range(5):
            x = b.add(nn.rms_norm(x, eps=eps if i >= 2 else 1.0), f"layer{i}")
        b.output(y=x)
        return b.module().graph

    difference = compare(chain(0.5), chain(0.25)).difference
    assert difference is not None and difference.place == "nn.rms_norm at layer2"


def test_rounding_to_f32_is_no_difference() -> None:
    assert compare(mlp(eps=9.999999974752427e-07), mlp(eps=1e-6)).difference is None


def test_another_op_in_the_place_is_named_with_its_reader() -> None:
    def tail(relu: bool) -> Graph:
        b = GraphBuilder()
        x = b.input("x", "f32", ("n", 4))
        b.output(y=b.add(nn.rms_norm(prim.relu(x) if relu else nn.silu(x)), "norm"))
        return b.module().graph

    difference = compare(tail(True), tail(False)).difference
    assert difference is not None
    assert (difference.place, difference.found, difference.expected) == (
        "nn.rms_norm at norm",
        "x from prim.relu",
        "x from nn.silu",
    )


def test_shared_ops_equal_repeated_ones() -> None:
    def square(shared: bool) -> Graph:
        b = GraphBuilder()
        x = b.input("x", "f32", ("n", 4))
        first = prim.exp(x)
        b.output(y=prim.mul(first, first if shared else prim.exp(x)))
        return b.module().graph

    assert compare(square(True), square(False)).difference is None
    assert compare(square(False), square(True)).difference is None


def tied(one: bool) -> Graph:
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", 4))
    first, second = b.weight(file("a", 4, 4)), b.weight(file("a" if one else "b", 4, 4))
    b.output(y=nn.linear(nn.linear(x, first), second))
    return b.module().graph


def test_two_weights_in_the_place_of_a_tied_one_are_a_difference() -> None:
    difference = compare(tied(False), tied(True)).difference
    assert difference is not None and difference.found == "two weights, 'a' and 'b'"


def test_one_weight_may_stand_in_two_places() -> None:
    found = compare(tied(True), tied(False))
    assert found.difference is None
    assert {name: symbol.name for name, symbol in found.weights.items()} == {"a": "a", "b": "a"}


def test_computed_buffers_are_compared_by_their_numbers() -> None:
    def turned(*frequencies: float) -> Graph:
        b = GraphBuilder()
        x, positions = b.input("x", "f32", (1, 2, "n", 4)), b.input("p", "i64", ("n",))
        b.output(y=nn.rope(x, positions, b.weight(table("inv_freq", *frequencies))))
        return b.module().graph

    assert compare(turned(1.0, 0.1), turned(1.0, 0.10000000149)).difference is None
    difference = compare(turned(1.0, 0.1001), turned(1.0, 0.1)).difference
    assert difference is not None and difference.found == "0.1001 at [1] of 'inv_freq'"


def test_inputs_and_outputs_are_paired_by_name() -> None:
    def named(source: str, out: str, width: int = 4) -> Graph:
        b = GraphBuilder()
        b.output(**{out: prim.neg(b.input(source, "f32", (width,)))})
        return b.module().graph

    for other, words in (
        (named("z", "y"), "inputs %z"),
        (named("x", "z"), "outputs z"),
        (named("x", "y", 5), "input %x: f32[5]"),
    ):
        difference = compare(other, named("x", "y")).difference
        assert difference is not None and difference.found == words


def test_which_result_is_read_matters() -> None:
    def piece(index: int) -> Graph:
        b = GraphBuilder()
        b.output(y=prim.neg(prim.split(b.input("x", "f32", (4,)), (2, 2), -1)[index]))
        return b.module().graph

    difference = compare(piece(0), piece(1)).difference
    assert difference is not None and "result 0" in difference.found and "result 1" in difference.expected


def test_depth_is_no_limit() -> None:
    def chain(last: float) -> Graph:
        b = GraphBuilder()
        x: Value = b.input("x", "f32", (4,))
        for i in range(5000):
            x = prim.add(x, prim.constant(last if i == 0 else 1.0, f32))
        b.output(y=x)
        return b.module().graph

    assert compare(chain(1.0), chain(1.0)).difference is None
    difference = compare(chain(2.0), chain(1.0)).difference
    assert difference is not None and difference.found == "value=2.0"
