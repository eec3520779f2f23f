"""Calls of ATen ops go through torch's ONNX function library, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from irlab import GraphBuilder, dims
from irlab.backends.onnx.lowerings.calls import refusal
from irlab.errors import LegalityError
from irlab.ops import prim
from irlab.ops.call import call
from irlab.types import f32, i64, tensor

Compare = Callable[..., dict[str, np.ndarray]]
N, M = dims.symbol("n"), dims.symbol("m")
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def test_operands_numbers_lists_and_sizes(compare: Compare) -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", "m"))
    same = x.type
    b.output(
        tril=call((x,), "aten.tril.default", ("%0", -1), (same,))[0],
        roll=call((x,), "aten.roll.default", ("%0", (1,), (0,)), (same,))[0],
        logaddexp=call((x, prim.neg(x)), "aten.logaddexp.default", ("%0", "%1"), (same,))[0],
        full=call((x,), "aten.full_like.default", ("%0", 2.5), (same,))[0],
        grown=call((x,), "aten.expand.default", ("%0", (2, N, M)), (tensor(f32, (2, N, M)),))[0],
    )
    compare(b.module(), {"x": X})


def test_several_results_feed_further_ops(compare: Compare) -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", "m"))
    values, indices = call((x,), "aten.sort.default", ("%0", -1, True), (x.type, tensor(i64, x.type.shape)))
    b.output(values=prim.mul(values, values), indices=indices)
    compare(b.module(), {"x": X})


def test_a_size_known_only_at_run_time(compare: Compare) -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", "m"))
    found = dims.symbol("u0")
    (where,) = call((prim.gt(x, prim.constant(0.0, f32)),), "aten.nonzero.default", ("%0",), (tensor(i64, (found, 2)),))
    flat = b.add(prim.reshape(where, (found * 2,)))
    b.output(flat=flat, counted=prim.iota(found, i64))
    compare(b.module(), {"x": X})


def test_an_op_that_the_library_lacks_is_named(compare: Compare) -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", "m"))
    b.output(y=call((x,), "aten.digamma.default", ("%0",), (x.type,))[0])
    assert refusal("aten.digamma.default")
    with pytest.raises(LegalityError, match=r"call @aten\.digamma\.default"):
        compare(b.module(), {"x": X})
