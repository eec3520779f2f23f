"""Every primitive, with sizes that are known only at run time, computes in each runtime what the interpreter does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from irlab import GraphBuilder, dims
from irlab.ir import Value
from irlab.ops import prim
from irlab.ops.control import if_
from irlab.types import bool_, f32, i64

RNG = np.random.default_rng(0)
FLOATS = {"x": RNG.standard_normal((3, 4)).astype(np.float32), "y": RNG.standard_normal((3, 4)).astype(np.float32)}
INTS = {"x": RNG.integers(-9, 9, (3, 4)), "y": RNG.integers(1, 5, (3, 4)) * np.array([1, -1, 1, -1])}
BOOLS = {"x": RNG.random((3, 4)) > 0.5, "y": RNG.random((3, 4)) > 0.5}
KINDS = {"f32": FLOATS, "i64": INTS, "bool": BOOLS}

Build = Callable[[Value, Value], Value]
Compare = Callable[..., dict[str, np.ndarray]]
N, M = dims.symbol("n"), dims.symbol("m")

ARITHMETIC = ["add", "sub", "mul", "div", "floordiv", "mod", "maximum", "minimum"]
LOGIC, COMPARISONS = ["and_", "or_", "xor"], ["eq", "ne", "lt", "le", "gt", "ge"]
ELEMENTWISE: list[tuple[str, str, Build]] = [
    *((name, "f32", getattr(prim, name)) for name in ARITHMETIC),
    *((name, "i64", getattr(prim, name)) for name in ARITHMETIC + LOGIC + COMPARISONS),
    *((name, "bool", getattr(prim, name)) for name in [*LOGIC, "eq", "ne"]),
    ("pow", "f32", lambda x, y: prim.pow(prim.abs(x), y)),
]
FUNCTIONS = ["exp", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh", "erf", "sigmoid", "log"]
UNARY = {
    "f32": ["neg", "abs", "sign", "relu", "floor", "ceil", "round", "isnan", *FUNCTIONS],
    "i64": ["neg", "abs", "sign", "not_"],
    "bool": ["not_"],
}


def two_inputs(kind: str, build: Build, shape: tuple[int | str, ...] = ("n", "m")) -> GraphBuilder:
    b = GraphBuilder()
    x, y = b.input("x", kind, shape), b.input("y", kind, shape)
    b.output(out=build(x, y))
    return b


@pytest.mark.parametrize(("name", "kind", "build"), ELEMENTWISE, ids=lambda v: v if isinstance(v, str) else "")
def test_binary(compare: Compare, name: str, kind: str, build: Build) -> None:
    compare(two_inputs(kind, build).module(), KINDS[kind])


@pytest.mark.parametrize("kind", UNARY)
def test_unary(compare: Compare, kind: str) -> None:
    b = GraphBuilder()
    x = b.input("x", kind, ("n", "m"))
    positive = prim.abs(x) if kind == "f32" else x
    b.output(**{name: getattr(prim, name)(positive if name in ("sqrt", "rsqrt", "log") else x) for name in UNARY[kind]})
    compare(b.module(), {"x": KINDS[kind]["x"]})


@pytest.mark.parametrize("kind", ["f32", "i64"])
def test_reductions(compare: Compare, kind: str) -> None:
    b = GraphBuilder()
    x = b.input("x", kind, ("n", "m"))
    names = ["sum", "max", "min", "prod", "any", "all"] + (["mean"] if kind == "f32" else [])
    cases = [(name, axes, keep) for name in names for axes in [(0,), (-1,), (0, 1)] for keep in [False, True]]
    outputs = {f"{name}{axes}{keep}": getattr(prim, name)(x, axes, keep) for name, axes, keep in cases}
    outputs |= {"argmax": prim.argmax(x, 0), "argmax_kept": prim.argmax(x, 1, True), "cumsum": prim.cumsum(x, 0)}
    values, indices = prim.topk(x, 2, -1)
    outputs["values"] = values
    if kind == "f32":
        outputs["indices"] = indices
    b.module().graph.set_outputs(outputs)
    compare(b.module(), {"x": KINDS[kind]["x"]})


SHAPES: dict[str, Callable[[Value, Value], Value]] = {
    "merge": lambda x, y: prim.reshape(x, (N * M,)),
    "split": lambda x, y: prim.reshape(prim.reshape(x, (N * M,)), (1, N, 1, M)),
    "two_unknown": lambda x, y: prim.reshape(prim.transpose(x, (1, 0)), (1, M, N)),
    "transpose": lambda x, y: prim.transpose(x, (1, 0)),
    "expand": lambda x, y: prim.expand(prim.reshape(x, (N, 1, M)), (N, 2, M)),
    "expand_to_size": lambda x, y: prim.expand(prim.constant(2.0, f32), (M + 1, N * 2)),
    "constant": lambda x, y: prim.constant(2.5, f32, (N, 3)),
    "slice": lambda x, y: prim.slice(x, 1, 1, M),
    "slice_symbolic": lambda x, y: prim.slice(x, 1, M - 2, M - 1),
    "slice_step": lambda x, y: prim.slice(x, -1, 0, M, 2),
    "concat": lambda x, y: prim.concat((x, y, x), -1),
    "split_pieces": lambda x, y: prim.split(x, (1, M - 1), -1)[1],
    "pad": lambda x, y: prim.pad(x, (1, 0), (0, 2), 7.0),
    "pad_symbolic": lambda x, y: prim.pad(x, (N, 0), (0, 0)),
    "iota": lambda x, y: prim.iota(M, i64, N, 3),
    "iota_float": lambda x, y: prim.iota(N, f32),
    "dim": lambda x, y: prim.dim(x, 1),
    "polynomial": lambda x, y: prim.iota(N * M - 2 * N + 1, i64),
    "floordiv": lambda x, y: prim.iota(dims.floordiv(M + 1, 2) + dims.mod(N, 2) + dims.maximum(N, M), i64),
    "where": lambda x, y: prim.where(prim.lt(x, y), x, y),
    "where_bool": lambda x, y: prim.where(prim.lt(x, y), prim.lt(x, y), prim.gt(x, y)),
    "cast_bool": lambda x, y: prim.cast(prim.cast(x, bool_), i64),
    "cast_int": lambda x, y: prim.cast(prim.mul(x, prim.constant(3.0, f32)), i64),
    "gather": lambda x, y: prim.gather(x, prim.iota(2, i64), -1),
    "gather_elements": lambda x, y: prim.gather_elements(x, prim.cast(prim.gt(x, y), i64), 0),
    "scatter": lambda x, y: prim.scatter(x, prim.constant(1, i64, (1, M)), prim.slice(y, 0, 0, 1), 0),
    "matmul": lambda x, y: prim.matmul(x, prim.transpose(y, (1, 0))),
    "the_input": lambda x, y: x,
}


@pytest.mark.parametrize("name", SHAPES)
def test_layout(compare: Compare, name: str) -> None:
    compare(two_inputs("f32", SHAPES[name]).module(), FLOATS)


def test_windows(compare: Compare) -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", 4, 9, 8))
    w = b.random_weight("w", "f32", (6, 2, 3, 3))
    bias = b.random_weight("bias", "f32", (6,))
    y = prim.conv(x, w, bias, (2, 1), (1, 0), (1, 2), 2)
    b.output(
        conv=y,
        max=prim.max_pool(y, (2, 2), (2, 1), (1, 0), (1, 1)),
        mean=prim.avg_pool(x, (3, 2), (2, 2), (1, 1), True),
        mean_inside=prim.avg_pool(x, (3, 2), (2, 2), (1, 1), False),
    )
    compare(b.module(), {"x": RNG.standard_normal((2, 4, 9, 8)).astype(np.float32)})


def test_a_size_that_no_input_shows_alone(compare: Compare) -> None:
    b = GraphBuilder()
    ids, mask = b.input("ids", "i64", ("seq",)), b.input("mask", "i64", ("past + seq",))
    past, seq = dims.symbol("past"), dims.symbol("seq")
    b.output(old=prim.slice(mask, 0, 0, past), positions=prim.add(prim.iota(seq, i64, past), ids))
    compare(b.module(), {"ids": np.arange(3), "mask": np.arange(8)})


def test_regions(compare: Compare) -> None:
    def branch(sign: float) -> GraphBuilder:
        b = GraphBuilder()
        x = b.input("x", "f32", ("n", 4))
        w = b.random_weight("w", "f32", (4, 4))
        b.output(y=prim.mul(prim.matmul(x, w), prim.constant(sign, f32)), size=prim.iota(N, i64), same=x)
        return b

    b = GraphBuilder()
    x = b.input("x", "f32", ("n", 4))
    many = prim.gt(prim.dim(x, 0), prim.constant(2, i64))
    y, size, same = if_(many, (x,), branch(1.0).module().graph, branch(-1.0).module().graph)
    b.output(y=y, size=size, same=same)
    three = compare(b.module(), {"x": FLOATS["x"]})
    two = compare(b.module(), {"x": FLOATS["x"][:2]})
    assert np.allclose(three["y"][:2], -two["y"])
