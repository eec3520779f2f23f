"""Each primitive, run by the interpreter, gives what NumPy gives, of the type that was inferred."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irlab import dims
from irlab.errors import InputError, TypeInferenceError
from irlab.interp import Program, to_torch
from irlab.ir import Graph, Op, Value
from irlab.ops import prim
from irlab.ops.call import call
from irlab.types import DTYPES, bf16, bool_, dtype, f16, f32, f64, i8, i32, i64, tensor, u8
from irlab.weights import numpy_dtype

SMALL_SHAPES = st.lists(st.integers(1, 4), min_size=0, max_size=4).map(tuple)


def run(build: Callable[..., Value | tuple[Value, ...]], *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Build over inputs of the arrays' types, run checked (so that inferred types must hold), give arrays."""
    graph = Graph()
    names = {numpy_dtype(d): d for d in DTYPES.values()}
    inputs = [graph.input(f"x{i}", tensor(names[a.dtype], a.shape)) for i, a in enumerate(arrays)]
    built = build(*inputs)
    values = built if isinstance(built, tuple) else (built,)
    graph.set_outputs({str(i): v for i, v in enumerate(values)})
    results = Program(graph, checked=True)({f"x{i}": a for i, a in enumerate(arrays)})
    return tuple(r.numpy() for r in results.values())


def numbers(shape: tuple[int, ...], kind: str = "float32", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    if kind == "bool":
        return rng.random(shape) < 0.5
    if kind.startswith("float"):
        return np.asarray(rng.standard_normal(shape) * 2, kind)
    return np.asarray(rng.integers(0 if kind.startswith("u") else -9, 10, shape), kind)


BINARY: list[tuple[type[Op], Callable[..., Any], tuple[str, ...]]] = [
    (prim.Add, np.add, ("float32", "int64", "int8")),
    (prim.Sub, np.subtract, ("float32", "int64")),
    (prim.Mul, np.multiply, ("float32", "float64", "int32")),
    (prim.Div, np.divide, ("float32",)),
    (prim.Maximum, np.maximum, ("float32", "int64")),
    (prim.Minimum, np.minimum, ("float32", "int64")),
    (prim.Eq, np.equal, ("float32", "int64", "bool")),
    (prim.Ne, np.not_equal, ("float32", "int64", "bool")),
    (prim.Lt, np.less, ("float32", "int64")),
    (prim.Le, np.less_equal, ("float32", "int64")),
    (prim.Gt, np.greater, ("float32", "int64")),
    (prim.Ge, np.greater_equal, ("float32", "int64")),
    (prim.And, np.bitwise_and, ("bool", "int64")),
    (prim.Or, np.bitwise_or, ("bool", "uint8")),
    (prim.Xor, np.bitwise_xor, ("bool", "int32")),
]


@pytest.mark.parametrize(("cls", "reference", "kinds"), BINARY, ids=lambda p: getattr(p, "opname", ""))
@settings(max_examples=15, deadline=None)
@given(shape=SMALL_SHAPES, data=st.data())
def test_binary_ops_broadcast_and_compute_as_numpy(cls: Any, reference: Any, kinds: Any, shape: Any, data: Any) -> None:
    ones = tuple(data.draw(st.sampled_from([1, n])) for n in shape[data.draw(st.integers(0, len(shape))) :])
    kind = data.draw(st.sampled_from(kinds))
    a, b = numbers(shape, kind), numbers(ones, kind, seed=1)
    a, b = (b, a) if data.draw(st.booleans()) else (a, b)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(run(lambda x, y: cls(x, y).result, a, b)[0], reference(a, b), rtol=1e-6)


def test_integer_division_rounds_toward_zero_floor_division_down_and_mod_takes_the_sign_of_the_divisor() -> None:
    a, b = np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])
    assert run(prim.div, a, b)[0].tolist() == [3, -3, -3, 3]
    assert run(prim.floordiv, a, b)[0].tolist() == [3, -4, -4, 3]
    assert run(prim.mod, a, b)[0].tolist() == [1, 1, -1, -1]
    assert run(prim.mod, a.astype("float32"), b.astype("float32"))[0].tolist() == [1, 1, -1, -1]
    assert run(prim.pow, np.array([2.0, 3.0], "float32"), np.array([3.0, -1.0], "float32"))[0][1] == pytest.approx(
        1 / 3
    )


UNARY: list[tuple[type[Op], Callable[..., Any]]] = [
    (prim.Neg, np.negative),
    (prim.Abs, np.abs),
    (prim.Sign, lambda x: np.nan_to_num(np.sign(x))),
    (prim.Relu, lambda x: np.maximum(x, 0)),
    (prim.Exp, np.exp),
    (prim.Log, np.log),
    (prim.Sqrt, np.sqrt),
    (prim.Rsqrt, lambda x: 1 / np.sqrt(x)),
    (prim.Reciprocal, lambda x: 1 / x),
    (prim.Sin, np.sin),
    (prim.Cos, np.cos),
    (prim.Tanh, np.tanh),
    (prim.Erf, np.vectorize(math.erf, otypes=["float32"])),
    (prim.Sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    (prim.Floor, np.floor),
    (prim.Ceil, np.ceil),
    (prim.Round, np.rint),
    (prim.IsNan, np.isnan),
]


@pytest.mark.parametrize(("cls", "reference"), UNARY, ids=lambda p: getattr(p, "opname", ""))
def test_unary_ops_compute_as_numpy(cls: Any, reference: Any) -> None:
    x = np.append(numbers((5, 3)).ravel(), np.array([0.5, 1.5, 2.5, -0.5, np.inf, np.nan], "float32"))
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(run(lambda v: cls(v).result, x)[0], reference(x), rtol=2e-6, atol=1e-6)


def test_not_is_bitwise_on_integers_and_logical_on_bool() -> None:
    assert run(prim.not_, np.array([True, False]))[0].tolist() == [False, True]
    assert run(prim.not_, np.array([0, 5]))[0].tolist() == [-1, -6]


def test_cast_truncates_toward_zero_and_compares_with_zero_for_bool() -> None:
    x = np.array([-1.7, 0.0, 2.9], "float32")
    assert run(lambda v: prim.cast(v, i64), x)[0].tolist() == [-1, 0, 2]
    assert run(lambda v: prim.cast(v, bool_), x)[0].tolist() == [True, False, True]
    assert run(lambda v: prim.cast(prim.cast(v, bf16), f32), np.array([1 + 2**-9], "float32"))[0].tolist() == [1.0]


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), data=st.data())
def test_layout_ops_move_elements_as_numpy_does(shape: tuple[int, ...], data: Any) -> None:
    x = numbers(shape, data.draw(st.sampled_from(["float32", "int64", "bool"])))
    perm = tuple(data.draw(st.permutations(range(len(shape)))))
    np.testing.assert_array_equal(run(lambda v: prim.transpose(v, perm), x)[0], x.transpose(perm))
    np.testing.assert_array_equal(run(lambda v: prim.reshape(v, (x.size, 1)), x)[0], x.reshape(-1, 1))
    np.testing.assert_array_equal(run(lambda v: prim.expand(v, (2, *shape)), x)[0], np.broadcast_to(x, (2, *shape)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    start = data.draw(st.integers(0, shape[axis]))
    stop = data.draw(st.integers(start, shape[axis]))
    step = data.draw(st.integers(1, 3))
    cut: list[slice] = [slice(None)] * len(shape)
    cut[axis] = slice(start, stop, step)
    np.testing.assert_array_equal(run(lambda v: prim.slice(v, axis, start, stop, step), x)[0], x[tuple(cut)])
    y = numbers(shape, str(x.dtype), seed=2)
    np.testing.assert_array_equal(
        run(lambda v, w: prim.concat((v, w, v), axis), x, y)[0], np.concatenate([x, y, x], axis)
    )
    pieces = run(lambda v: prim.split(v, (start, shape[axis] - start), axis), x)
    for piece, expected in zip(pieces, np.split(x, [start], axis), strict=True):
        np.testing.assert_array_equal(piece, expected)


def test_pad_adds_the_value_on_both_sides_of_each_dimension() -> None:
    x = numbers((2, 3))
    padded = run(lambda v: prim.pad(v, (1, 0), (0, 2), -1.5), x)[0]
    np.testing.assert_array_equal(padded, np.pad(x, ((1, 0), (0, 2)), constant_values=-1.5))
    assert run(lambda v: prim.pad(v, (1,), (1,), 7), np.array([1, 2]))[0].tolist() == [7, 1, 2, 7]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_takes_slices_for_indices_of_any_rank(axis: int) -> None:
    x, indices = numbers((3, 4, 2)), np.array([[0, 1], [1, 0]])
    np.testing.assert_array_equal(run(lambda v, i: prim.gather(v, i, axis), x, indices)[0], np.take(x, indices, axis))
    scalar = np.array(1, "int32")
    np.testing.assert_array_equal(run(lambda v, i: prim.gather(v, i, axis), x, scalar)[0], np.take(x, 1, axis))


def test_gather_elements_and_scatter_are_each_others_inverse() -> None:
    x = numbers((3, 5))
    order = np.argsort(numbers((3, 5), seed=3), axis=1)
    np.testing.assert_array_equal(
        run(lambda v, i: prim.gather_elements(v, i, 1), x, order)[0], np.take_along_axis(x, order, 1)
    )
    back = run(lambda v, i: prim.scatter(v, i, prim.gather_elements(v, i, 1), 1), x, order)[0]
    np.testing.assert_array_equal(back, x)


REDUCTIONS = [
    (prim.Sum, np.sum, ("float32", "int32", "int64")),
    (prim.Mean, np.mean, ("float32",)),
    (prim.Max, np.max, ("float32", "int64")),
    (prim.Min, np.min, ("float32", "int64")),
    (prim.Prod, np.prod, ("float32", "int32")),
    (prim.Any, np.any, ("bool", "int64", "float32")),
    (prim.All, np.all, ("bool", "int64", "float32")),
]


@pytest.mark.parametrize(("cls", "reference", "kinds"), REDUCTIONS, ids=lambda p: getattr(p, "opname", ""))
@settings(max_examples=15, deadline=None)
@given(shape=st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple), data=st.data())
def test_reductions_compute_as_numpy_and_keep_their_dtype(
    cls: Any, reference: Any, kinds: Any, shape: Any, data: Any
) -> None:
    x = numbers(shape, data.draw(st.sampled_from(kinds)))
    axes = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    keep = data.draw(st.booleans())
    expected = np.asarray(reference(x, axis=axes, keepdims=keep))
    if expected.dtype == np.int64:  # NumPy widens; ours keeps its dtype and wraps
        expected = expected.astype(x.dtype)
    np.testing.assert_allclose(run(lambda v: cls(v, axes, keep).result, x)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_reduction_over_no_axes_changes_nothing() -> None:
    x = numbers((2, 3))
    for build in (prim.sum, prim.mean, prim.max, prim.min, prim.prod):
        np.testing.assert_array_equal(run(lambda v, build=build: build(v, ()), x)[0], x)


def test_argmax_gives_the_first_of_equals_and_topk_sorts() -> None:
    x = np.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]], "float32")
    assert run(lambda v: prim.argmax(v, -1), x)[0].tolist() == [1, 0]
    assert run(lambda v: prim.argmax(v, 0, keepdims=True), x)[0].tolist() == [[1, 0, 0]]
    values, indices = run(lambda v: prim.topk(v, 2), x)
    assert values.tolist() == [[3.0, 3.0], [2.0, 1.0]] and indices[1].tolist() == [0, 2]


def test_cumsum_includes_the_element_itself() -> None:
    assert run(lambda v: prim.cumsum(v, 0), np.array([1, 2, 3], "int32"))[0].tolist() == [1, 3, 6]


@settings(max_examples=15, deadline=None)
@given(m=st.integers(1, 3), k=st.integers(1, 4), n=st.integers(1, 3), batch=st.sampled_from([(), (2,), (1, 3)]))
def test_matmul_broadcasts_leading_dimensions(m: int, k: int, n: int, batch: tuple[int, ...]) -> None:
    a, b = numbers((2, 3, m, k) if len(batch) == 2 else (*batch, m, k)), numbers((*batch, k, n), seed=1)
    np.testing.assert_allclose(run(prim.matmul, a, b)[0], a @ b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_conv_and_pools_have_the_sizes_that_were_inferred(spatial: int) -> None:
    x, w = numbers((2, 4, *[7] * spatial)), numbers((6, 2, *[3] * spatial), seed=1)
    b = numbers((6,), seed=2)
    stride, padding, dilation = (2,) * spatial, (1,) * spatial, (1,) * spatial
    built = run(lambda x, w, b: prim.conv(x, w, b, stride, padding, dilation, groups=2), x, w, b)[0]
    conv = [torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d][spatial - 1]
    expected = conv(torch.tensor(x), torch.tensor(w), torch.tensor(b), stride, padding, dilation, 2)
    np.testing.assert_allclose(built, expected.numpy(), rtol=1e-4, atol=1e-5)
    kernel = (3,) * spatial
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, tuple(range(2, 2 + spatial)))
    last = tuple(range(-spatial, 0))
    none, one = (0,) * spatial, (1,) * spatial
    np.testing.assert_allclose(run(lambda x: prim.max_pool(x, kernel, one, none, one), x)[0], windows.max(last))
    np.testing.assert_allclose(run(lambda x: prim.avg_pool(x, kernel, one, none), x)[0], windows.mean(last), atol=1e-6)


def test_average_pooling_counts_padding_only_when_told_to() -> None:
    x = np.ones((1, 1, 2), "float32")
    counted, uncounted = (
        run(lambda v, c=c: prim.avg_pool(v, (2,), (1,), (1,), count_padding=c), x)[0] for c in (True, False)
    )
    assert counted.tolist() == [[[0.5, 1.0, 0.5]]] and uncounted.tolist() == [[[1.0, 1.0, 1.0]]]


def test_literals_take_their_sizes_from_the_inputs() -> None:
    graph = Graph()
    seq = dims.symbol("seq")
    x = graph.input("x", tensor(f32, (seq, 2)))
    graph.set_outputs(
        {
            "iota": prim.iota(seq + 1, i64, start=seq - 1, step=2),
            "full": prim.constant(2.5, f16, (seq, 3)),
            "dim": prim.dim(x, 0),
            "halves": prim.slice(x, 0, seq // 2, seq),
        }
    )
    results = Program(graph, checked=True)({"x": np.zeros((4, 2), "float32")})
    assert results["iota"].tolist() == [3, 5, 7, 9, 11]
    assert results["full"].shape == (4, 3) and results["full"].unique().tolist() == [2.5]
    assert results["dim"].tolist() == 4 and results["halves"].shape == (2, 2)


def x_of(kind: str, *shape: int | str) -> Value:
    sizes = tuple(dims.parse(s) if isinstance(s, str) else s for s in shape)
    return Graph().input("x", tensor(dtype(kind), sizes))


REFUSED: list[tuple[str, Callable[[], object]]] = [
    ("differ in dtype", lambda: prim.add(x_of("f32", 2), x_of("f16", 2))),
    ("do not broadcast", lambda: prim.mul(x_of("f32", 2), x_of("f32", 3))),
    ("do not broadcast", lambda: prim.mul(x_of("f32", "seq"), x_of("f32", "batch"))),
    ("not defined on bool", lambda: prim.add(x_of("bool", 2), x_of("bool", 2))),
    ("not defined on bool", lambda: prim.sum(x_of("bool", 2), (0,))),
    ("not defined on bool", lambda: prim.neg(x_of("bool", 2))),
    ("integers or bool", lambda: prim.and_(x_of("f32", 2), x_of("f32", 2))),
    ("floating-point", lambda: prim.exp(x_of("i64", 2))),
    ("floating-point", lambda: prim.mean(x_of("i64", 2), (0,))),
    ("condition must be bool", lambda: prim.where(x_of("i64", 2), x_of("f32", 2), x_of("f32", 2))),
    ("do not fill", lambda: prim.reshape(x_of("f32", "seq", 6), (dims.symbol("seq"), 5))),
    ("no permutation", lambda: prim.transpose(x_of("f32", 2, 3), (0, 0))),
    ("too small", lambda: prim.expand(x_of("f32", 2, 3), (3,))),
    ("outside size", lambda: prim.slice(x_of("f32", 4), 0, 2, 5)),
    ("empty backwards", lambda: prim.slice(x_of("f32", 4), 0, 3, 2)),
    ("not positive", lambda: prim.slice(x_of("f32", 4), 0, 0, 2, 0)),
    ("outside rank", lambda: prim.argmax(x_of("f32", 4), 1)),
    ("operands differ off axis", lambda: prim.concat((x_of("f32", 2, 3), x_of("f32", 2, 4)), 0)),
    ("add up to", lambda: prim.split(x_of("f32", 4), (1, 2), 0)),
    ("a piece is negative", lambda: prim.split(x_of("f32", 4), (5, -1), 0)),
    ("an amount is negative", lambda: prim.pad(x_of("f32", 4), (-1,), (0,))),
    ("must be integers", lambda: prim.gather(x_of("f32", 4), x_of("f32", 2))),
    ("exceed size", lambda: prim.gather_elements(x_of("f32", 4, 2), x_of("i64", 4, 3), 0)),
    ("one update per index", lambda: prim.scatter(x_of("f32", 4), x_of("i64", 2), x_of("f32", 3), 0)),
    ("inner sizes", lambda: prim.matmul(x_of("f32", 2, 3), x_of("f32", 4, 2))),
    ("does not fit size", lambda: prim.max_pool(x_of("f32", 1, 1, 2), (3,), (1,), (0,), (1,))),
    ("half the kernel", lambda: prim.avg_pool(x_of("f32", 1, 1, 4), (2,), (1,), (2,))),
    ("groups", lambda: prim.conv(x_of("f32", 1, 4, 5), x_of("f32", 3, 2, 3), None, (1,), (0,), (1,), 2)),
    ("k = 5", lambda: prim.topk(x_of("f32", 4), 5)),
]


@pytest.mark.parametrize(("message", "build"), REFUSED, ids=[m for m, _ in REFUSED])
def test_what_does_not_fit_is_refused_when_it_is_built(message: str, build: Callable[[], object]) -> None:
    with pytest.raises(TypeInferenceError, match=message):
        build()


def test_every_dtype_crosses_between_numpy_and_torch() -> None:
    for d in DTYPES.values():
        array = np.array([0, 1, 1], numpy_dtype(d))
        assert to_torch(array).to(torch.float32).tolist() == [0, 1, 1], d
    assert {i8, u8, i32, f64} <= set(DTYPES.values())


def test_a_call_runs_the_aten_op_and_binds_sizes_that_only_the_run_can_tell() -> None:
    graph = Graph()
    x = graph.input("x", tensor(f32, (dims.symbol("n"),)))
    found = tensor(i64, (dims.symbol("u0"), 1))
    (at,) = call((x,), "aten.nonzero.default", ("%0",), (found,))
    (picked,) = call(
        (x, prim.reshape(at, (dims.symbol("u0"),))),
        "aten.index.Tensor",
        ("%0", ("%1",)),
        (tensor(f32, (dims.symbol("u0"),)),),
    )
    (summed,) = call((picked,), "aten.sum.dim_IntList", ("%0", (0,), False, f64), (tensor(f64, ()),))
    graph.set_outputs({"picked": prim.mul(picked, picked), "sum": summed})
    results = Program(graph, checked=True)({"x": np.array([0.0, 2.0, 0.0, 3.0], "float32")})
    assert results["picked"].tolist() == [4.0, 9.0]
    assert results["sum"].item() == 5.0 and results["sum"].dtype is torch.float64


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("aten.add_.Tensor", "changes its arguments"),
        ("aten.from_file.default", "not allowed"),
        ("aten.no_such_op.default", "has no op"),
        ("aten.relu.overloads", "has no op"),
        ("aten.__class__.default", "not allowed"),
    ],
)
def test_a_call_reaches_functional_aten_ops_and_nothing_else(target: str, message: str) -> None:
    graph = Graph()
    x = graph.input("x", tensor(f32, (2,)))
    graph.set_outputs({"y": call((x,), target, ("%0",), (tensor(f32, (2,)),))[0]})
    with pytest.raises(InputError, match=message):
        Program(graph)({"x": np.zeros(2, "float32")})


@pytest.mark.parametrize(
    "target", ["os.system", "aten.relu", "aten.relu.default.x", "prims.add.default", "aten..default"]
)
def test_a_call_of_anything_but_an_aten_overload_cannot_be_built(target: str) -> None:
    x = x_of("f32", 2)
    with pytest.raises(Exception, match="must read aten"):
        call((x,), target, ("%0",), (x.type,))


def test_a_call_mentions_all_its_operands() -> None:
    x = x_of("f32", 2)
    with pytest.raises(Exception, match="2 operands"):
        call((x, x), "aten.relu.default", ("%0",), (x.type,))
