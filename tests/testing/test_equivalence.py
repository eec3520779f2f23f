"""assert_equivalent accepts what is the same and says what is not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings

from irlab import Context, GraphBuilder, Module, Pass, Value, nn, prim
from irlab.errors import InputError
from irlab.testing import CannotRun, assert_equivalent, assert_preserves
from irlab.testing.strategies import decoders, runnable_modules
from irlab.types import f32, i64
from irlab.verify import verify


def module(expression: object, shape: tuple[int | str, ...] = ("batch", 4)) -> Module:
    b = GraphBuilder()
    x = b.input("x", "f32", shape)
    b.output(y=expression(x))  # type: ignore[operator]
    return b.module()


def test_the_same_function_written_twice() -> None:
    assert assert_equivalent(module(nn.silu), module(lambda x: prim.mul(prim.sigmoid(x), x))).relative < 1e-6


def test_a_difference_is_named_and_placed() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_equivalent(module(nn.silu), module(lambda x: prim.mul(prim.sigmoid(x), prim.abs(x))))
    message = str(caught.value)
    assert "output 'y' differs with inputs of seed 0 at batch = 2" in message
    assert "numbers differ" in message and "became" in message
    assert "-  %0 = nn.silu(%x)" in message and "+" in message


def test_a_difference_at_larger_sizes_only_is_found() -> None:
    def first(x: Value) -> Value:
        return prim.slice(x, 0, 0, 2)

    def last(x: Value) -> Value:
        size = x.type.shape[0]
        return prim.slice(x, 0, size - 2, size)

    with pytest.raises(AssertionError, match=r"at batch = 6"):
        assert_equivalent(module(first), module(last))


def test_exactness_sets_what_is_allowed() -> None:
    near = module(lambda x: prim.mul(x, prim.constant(1.001, f32)))
    same = module(lambda x: prim.mul(x, prim.constant(1.0, f32)))
    for allowed in ({"exactness": "close", "rtol": 1e-2}, {"exactness": "lossy"}, {"atol": 1.0}):
        assert_equivalent(same, near, **allowed)  # type: ignore[arg-type]
    for refused in ({"exactness": "exact", "rtol": 1e-2}, {"exactness": "close", "rtol": 1e-4}):
        with pytest.raises(AssertionError, match="allowed is 0\\.0001"):
            assert_equivalent(same, near, **refused)  # type: ignore[arg-type]


def test_the_interface_must_be_the_same() -> None:
    with pytest.raises(AssertionError, match=r"the inputs differ: x: f32\[batch, 4\] became x: f32\[batch, 5\]"):
        assert_equivalent(module(nn.silu), module(nn.silu, ("batch", 5)))
    with pytest.raises(AssertionError, match="the outputs differ"):
        assert_equivalent(module(nn.silu), module(lambda x: prim.cast(x, i64)))
    assert_equivalent(module(nn.silu), module(lambda x: prim.cast(x, i64)), exactness="lossy")
    with pytest.raises(AssertionError, match="the first graph has no output 'z'; it has y"):
        assert_equivalent(module(nn.silu), module(nn.silu), outputs=("z",))


def test_a_graph_that_no_small_input_fits() -> None:
    picky = module(lambda x: prim.slice(x, 0, 0, 10_000))
    with pytest.raises(CannotRun):
        assert_equivalent(picky, picky.clone())
    wants_more = module(lambda x: prim.slice(x, 0, 0, 30))
    assert_equivalent(wants_more, wants_more.clone())  # at the last resort


@settings(max_examples=20)
@given(runnable_modules())
def test_runnable_modules_run(module: Module) -> None:
    verify(module)
    assert assert_equivalent(module, module.clone(), exactness="exact").identical


@settings(max_examples=10)
@given(decoders())
def test_decoders_run(module: Module) -> None:
    verify(module)
    assert list(module.graph.outputs) == ["logits"]
    assert assert_equivalent(module, module.clone(), exactness="exact").identical


@dataclass(frozen=True)
class Halve(Pass, name="test-halve", exactness="exact"):
    """A pass that breaks its promise."""

    def run(self, module: Module, ctx: Context) -> None:
        graph = module.graph
        graph.set_outputs({name: prim.mul(v, prim.constant(0.5, f32)) for name, v in graph.outputs.items()})


def test_a_pass_that_breaks_its_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    from irlab import registry

    monkeypatch.setitem(registry._added["passes"], "test-halve", Halve)
    with pytest.raises(AssertionError, match="output 'y' differs"):
        assert_preserves("test-halve", module(nn.silu))
    assert_preserves("test-halve,quantize{group=4}", tiny_linear())


def tiny_linear() -> Module:
    b = GraphBuilder()
    x = b.input("x", "f32", ("batch", 4))
    b.output(y=nn.linear(x, b.random_weight("w", "f32", (4, 4))))
    return b.module()


def test_a_pass_that_refuses() -> None:
    with pytest.raises(InputError, match="no weight"):
        assert_preserves("quantize", module(nn.silu))
