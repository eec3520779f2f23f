"""The strip-unused pass: outputs by name, and the ops, weights and inputs that go with them."""

from __future__ import annotations

import pytest

import irlab
from irlab import Module, prim
from irlab.errors import InputError
from irlab.ir import GraphBuilder


def module() -> Module:
    b = GraphBuilder("two")
    x, y, z = (b.input(name, "f32", (4,)) for name in "xyz")
    first = prim.mul(x, b.random_weight("w", "f32", (4,)))
    b.output(a=first, b=prim.add(y, b.random_weight("v", "f32", (4,))))
    b.add(prim.exp(z))
    return b.module()


def shape(module: Module) -> tuple[list[str | None], list[str], list[str], list[str]]:
    """Inputs, outputs, weights, and the names of ops."""
    graph = module.graph
    return [v.name for v in graph.inputs], list(graph.outputs), list(module.weights), [o.opname for o in graph.topo()]


def test_dead_ops_and_unread_inputs_go() -> None:
    inputs, outputs, weights, ops = shape(irlab.run(module(), "strip-unused"))
    assert (inputs, outputs, weights) == (["x", "y"], ["a", "b"], ["w", "v"])
    assert "prim.exp" not in ops


def test_outputs_that_are_not_wanted_take_all_that_only_they_needed() -> None:
    inputs, outputs, weights, ops = shape(irlab.run(module(), "strip-unused{outputs=a}"))
    assert (inputs, outputs, weights) == (["x"], ["a"], ["w"])
    assert ops == ["prim.weight", "prim.mul", "return"]


def test_inputs_can_stay() -> None:
    assert shape(irlab.run(module(), "strip-unused{outputs=b inputs=false}"))[0] == ["x", "y", "z"]


def test_an_output_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"no output 'c' \(outputs: a, b\)"):
        irlab.run(module(), "strip-unused{outputs=a,c}")
