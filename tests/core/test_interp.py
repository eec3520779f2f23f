"""Running graphs: inputs, sizes, memory, gradients, regions, weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from irlab import dims
from irlab.errors import InputError, IRError
from irlab.interp import Program, Sizes, evaluate
from irlab.ir import Graph, GraphBuilder, Op, Value
from irlab.ops import nn, prim
from irlab.ops.control import if_
from irlab.types import TensorType, bool_, f32, i64, tensor
from irlab.weights import Literal, Random, Recipe, WeightSymbol


def double() -> Graph:
    graph = Graph()
    x = graph.input("x", tensor(f32, (dims.symbol("n"), 2)))
    y = graph.input("y", tensor(f32, (dims.symbol("n") + dims.symbol("m"), 2)))
    graph.set_outputs({"x2": prim.add(x, x), "both": prim.concat((x, y), 0), "m": prim.iota(dims.symbol("m"), i64)})
    return graph


def test_inputs_may_be_tensors_arrays_or_lists() -> None:
    x = [[1.0, 2.0]]
    for given_x in (x, np.array(x), torch.tensor(x), np.array(x, ml_dtypes.bfloat16), [[1, 2]]):
        results = evaluate(double(), {"x": given_x, "y": torch.zeros(4, 2)})
        assert results["x2"].tolist() == [[2.0, 4.0]] and results["x2"].dtype is torch.float32
        assert results["m"].tolist() == [0, 1, 2]


BAD_INPUTS = [
    ({"x": [[1.0, 2.0]]}, "input 'y' is missing"),
    ({"x": [[1.0, 2.0]], "y": [[1.0, 2.0]], "z": 1}, "there is no input 'z'"),
    ({"x": [[1.0]], "y": [[1.0, 2.0]]}, "input 'x' has size 1 in dimension 1, expected 2"),
    ({"x": [1.0], "y": [[1.0, 2.0]]}, r"input 'x' has shape \[1\], expected \[n, 2\]"),
    ({"x": torch.zeros(3, 2), "y": torch.zeros(1, 2)}, r"size 1 in dimension 0, which m \+ n cannot be"),
    ({"x": [["a"]], "y": [[1.0, 2.0]]}, "input 'x' is no tensor"),
    ({"x": torch.zeros(1, 2, dtype=torch.complex64), "y": torch.zeros(1, 2)}, "holds complex64"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUTS, ids=[m for _, m in BAD_INPUTS])
def test_inputs_that_do_not_fit_are_refused_by_name(inputs: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(double(), inputs)


def test_floats_are_not_rounded_to_integers() -> None:
    graph = Graph()
    graph.set_outputs({"y": graph.input("ids", tensor(i64, (2,)))})
    assert evaluate(graph, {"ids": [True, False]})["y"].tolist() == [1, 0]
    with pytest.raises(InputError, match="input 'ids' holds float32 where"):
        evaluate(graph, {"ids": [1.0, 2.0]})


def test_an_unknown_output_is_refused_and_a_known_one_computed_alone() -> None:
    inputs = {"x": torch.zeros(1, 2), "y": torch.zeros(3, 2)}
    with pytest.raises(InputError, match="no output 'z'"):
        evaluate(double(), inputs, outputs=["z"])
    assert list(evaluate(double(), inputs, outputs=["both"])) == ["both"]


@given(n=st.integers(0, 9), m=st.integers(0, 9), k=st.integers(1, 5))
def test_symbols_are_solved_from_linear_sizes_in_any_order(n: int, m: int, k: int) -> None:
    a, b, c = map(dims.symbol, "abc")
    sizes = Sizes()
    sizes.bind([("t", (a * k + b * 2 + c, a + c * 3, c), (n * k + m * 2 + 4, n + 12, 4))])
    assert (sizes(a), sizes(b), sizes(c), sizes((a + b) // 2)) == (n, m, 4, (n + m) // 2)


def test_a_size_that_no_input_tells_is_an_error_only_when_it_is_needed() -> None:
    graph = Graph()
    x = graph.input("x", tensor(f32, (dims.symbol("a") * dims.symbol("b"),)))
    graph.set_outputs({"y": prim.neg(x), "z": prim.iota(dims.symbol("a"), i64)})
    assert evaluate(graph, {"x": [1.0]}, outputs=["y"])["y"].tolist() == [-1.0]
    with pytest.raises(InputError, match="the size a is not known"):
        evaluate(graph, {"x": [1.0]})


def test_the_place_of_a_failure_is_named() -> None:
    b = GraphBuilder()
    table = b.random_weight("w", "f32", (4, 2))
    b.output(y=b.add(nn.embedding(b.input("ids", "i64", (1,)), table), "model.embed_tokens"))
    with pytest.raises(InputError, match=r"nn.embedding at model.embed_tokens failed: index out of range"):
        evaluate(b.module(), {"ids": [4]})


READS: list[str] = []


@dataclass(frozen=True)
class Counting(Recipe, text_name=""):
    """Ones, and a note of each reading."""

    name: str
    of: TensorType = field(default=tensor(f32, (2, 2)))

    @property
    def type(self) -> TensorType:
        return self.of

    def rows(self, start: int, stop: int) -> np.ndarray:
        READS.append(self.name)
        return np.ones((stop - start, 2), "float32")


def two_layers() -> Graph:
    graph = Graph()
    x = graph.input("x", tensor(f32, (1, 2)))
    a, b = (graph.add(prim.Weight(WeightSymbol(name, Counting(name)))).result for name in "ab")
    graph.set_outputs({"y": nn.linear(nn.linear(nn.linear(x, a), b), a)})
    return graph


def test_weights_are_read_when_they_are_needed_and_kept_only_within_the_budget() -> None:
    READS.clear()
    evaluate(two_layers(), {"x": [[1.0, 1.0]]})
    assert READS == ["a", "b", "a"]
    for budget, expected in ((16, ["a", "b", "b"]), (32, ["a", "b"]), (15, ["a", "b", "a"] * 2)):
        READS.clear()
        program = Program(two_layers(), cache_bytes=budget)
        for _ in range(2):
            assert program({"x": [[1.0, 1.0]]})["y"].tolist() == [[8.0, 8.0]]
        assert expected == READS, budget


def test_values_die_after_their_last_use() -> None:
    alive: list[int] = []

    class Watched(nn.NNOp, opname="test.watched"):
        """x + 1, noting how many large tensors are alive."""

        x: Value

        def infer(self) -> TensorType:
            return self.x.type

    from irlab.interp import kernels, nn_kernels

    def watch(op: Op, run: object, x: torch.Tensor) -> torch.Tensor:
        import gc

        alive.append(sum(type(o) is torch.Tensor and o.numel() == 12345 for o in gc.get_objects()))
        return x + 1

    nn_kernels.NN_KERNELS[Watched] = watch
    try:
        graph = Graph()
        y = x = graph.input("x", tensor(f32, (12345,)))
        for _ in range(6):
            y = Watched(y).result
        graph.set_outputs({"y": y})
        # The caller's own tensor, and what the running step reads; the last steps must not have more than the first.
        evaluate(graph, {"x": np.zeros(12345, "float32")})
    finally:
        del nn_kernels.NN_KERNELS[Watched]
    assert kernels.kernel_of(nn.Linear) is not None
    assert alive[-1] <= alive[1], alive
    assert x.uses


def test_gradients_flow_to_weights_that_are_given_as_parameters() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", 4))
    w, g = b.random_weight("w", "f32", (3, 4)), b.random_weight("norm", "f32", (4,), seed=1)
    b.output(y=nn.silu(nn.linear(nn.rms_norm(x, g), w)))
    parameters = {"w": torch.randn(3, 4, requires_grad=True), "norm": torch.ones(4, requires_grad=True)}
    given = torch.randn(5, 4)
    y = evaluate(b.module(), {"x": given}, weights=parameters)["y"]
    y.square().sum().backward()  # type: ignore[no-untyped-call]
    normed = given * torch.rsqrt(given.square().mean(-1, keepdim=True) + 1e-6) * parameters["norm"]
    torch.testing.assert_close(y, torch.nn.functional.silu(normed @ parameters["w"].T))
    w_by_hand = torch.autograd.functional.jacobian(
        lambda p: torch.nn.functional.silu(normed.detach() @ p.T).square().sum(), parameters["w"].detach()
    )
    torch.testing.assert_close(parameters["w"].grad, w_by_hand)
    assert parameters["norm"].grad is not None and parameters["norm"].grad.abs().sum() > 0


def test_a_given_weight_must_have_the_declared_shape() -> None:
    with pytest.raises(InputError, match="weight 'a' is f32"):
        evaluate(two_layers(), {"x": [[1.0, 1.0]]}, weights={"a": torch.ones(3, 2)})


def branch(build: object) -> Graph:
    graph = Graph()
    x = graph.input("x", tensor(f32, (dims.symbol("n"),)))
    graph.set_outputs({"y": build(x)})  # type: ignore[operator]
    return graph


def test_if_runs_one_region_which_may_read_weights_and_sizes() -> None:
    graph = Graph()
    n = dims.symbol("n")
    flag = graph.input("flag", tensor(bool_, ()))
    x = graph.input("x", tensor(f32, (n,)))
    w = WeightSymbol("w", Literal(tensor(f32, (1,)), (10.0,)))
    then_ = branch(lambda v: prim.mul(v, prim.weight(w)))
    else_ = branch(lambda v: prim.add(v, prim.cast(prim.iota(n, i64), f32)))
    (y,) = if_(flag, (x,), then_, else_)
    graph.set_outputs({"y": prim.neg(y)})
    program = Program(graph, checked=True)
    assert program({"flag": True, "x": [1.0, 2.0]})["y"].tolist() == [-10.0, -20.0]
    assert program({"flag": False, "x": [1.0, 2.0, 3.0]})["y"].tolist() == [-1.0, -3.0, -5.0]
    assert set(graph.weights()) == {"w"}


class Wrong(nn.NNOp, opname="test.wrong"):
    """Declares another type than its decomposition gives."""

    x: Value

    def infer(self) -> TensorType:
        return self.x.type

    def decompose(self) -> Value:
        return prim.cast(self.x, i64)


def test_checked_programs_compare_results_with_their_types() -> None:
    graph = Graph()
    graph.set_outputs({"y": Wrong(graph.input("x", tensor(f32, (2,)))).result})
    assert Program(graph)({"x": [1.5, 2.0]})["y"].dtype is torch.int64
    with pytest.raises(IRError, match=r"test\.wrong gave int64, declared is f32"):
        Program(graph, checked=True)({"x": [1.5, 2.0]})


def test_an_op_with_neither_kernel_nor_decomposition_is_refused() -> None:
    class Opaque(Op, opname="test.opaque"):
        """Nobody knows what it does."""

        x: Value

        def infer(self) -> TensorType:
            return self.x.type

    graph = Graph()
    graph.set_outputs({"y": Opaque(graph.input("x", tensor(f32, (2,)))).result})
    with pytest.raises(IRError, match=r"the interpreter cannot run test\.opaque"):
        Program(graph)


def test_a_long_chain_runs_and_inputs_and_weights_may_be_outputs() -> None:
    graph = Graph()
    x = graph.input("x", tensor(f32, (2,)))
    y = x
    for _ in range(3000):
        y = prim.add(y, prim.constant(1.0, f32))
    w = prim.weight(WeightSymbol("w", Random(tensor("bf16", (3,)))))
    graph.set_outputs({"x": x, "y": y, "w": w, "y again": y})
    results = evaluate(graph, {"x": [0.0, math.pi]})
    assert results["y"][0] == 3000 and results["w"].dtype is torch.bfloat16
    assert torch.equal(results["y"], results["y again"])
