"""canonicalize, constant-folding, cse and dce on random graphs: the result computes the same, and settles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irlab import Context, Module, Pass, dims, prim
from irlab.diff import RewriteChecker
from irlab.fold import Known, evaluate_constants, number_of, write_down
from irlab.interp import Program
from irlab.ir import Graph, GraphBuilder, Value, Weight
from irlab.ops.call import call
from irlab.passes.canonicalize import Canonicalize
from irlab.passes.canonicalize.pairs import holds
from irlab.passes.constant_folding import ConstantFolding
from irlab.passes.cse import CSE
from irlab.passes.dce import DCE
from irlab.types import DTYPES, bool_, f32, i64, tensor
from irlab.weights import Literal, WeightSymbol, numpy_dtype

PASSES: list[Pass] = [Canonicalize(), ConstantFolding(), CSE(), DCE()]

NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 2.0, 0.5])


@st.composite
def modules(draw: Any) -> Module:
    """Random layouts and arithmetic over x: f32[n, 3, 4], a small literal, and constants that are often neutral."""
    b = GraphBuilder("random")
    n = dims.symbol("n")
    shape = (n, 3, 4)
    x = b.input("x", "f32", ("n", 3, 4))
    flag = b.input("flag", "bool", ("n", 3, 4))
    literal = b.weight(WeightSymbol("small", Literal(tensor(f32, (4,)), (1.0, 2.0, 0.5, 3.0))))
    values: list[Value] = [x, prim.expand(literal, shape)]

    def pick() -> Value:
        return draw(st.sampled_from(values))

    def constant() -> Value:
        return prim.constant(draw(NUMBERS), f32, draw(st.sampled_from([(), (), (1,), (3, 1)])))

    def round_trip(v: Value) -> Value:
        perm = draw(st.permutations([0, 1, 2]))
        back = tuple(perm.index(i) for i in range(3))
        between = prim.transpose(v, tuple(perm))
        return prim.transpose(between, back) if draw(st.booleans()) else prim.reshape(between, shape)

    def sliced(v: Value) -> Value:
        at = draw(st.integers(0, 3))
        pieces = (prim.slice(v, -1, 0, at), prim.slice(prim.slice(v, -1, at, 4), -1, 0, 4 - at))
        return prim.concat(pieces, -1)

    builders = [
        lambda: prim.add(pick(), constant()),
        lambda: prim.add(constant(), pick()),
        lambda: prim.mul(pick(), constant()),
        lambda: prim.mul(constant(), pick()),
        lambda: prim.sub(pick(), pick()),
        lambda: prim.add(pick(), pick()),
        lambda: prim.div(pick(), prim.constant(draw(st.sampled_from([1.0, 2.0])), f32)),
        lambda: prim.maximum(pick(), pick()),
        lambda: prim.neg(pick()),
        lambda: prim.abs(pick()),
        lambda: prim.relu(pick()),
        lambda: prim.mul(pick(), prim.add(constant(), constant())),
        lambda: prim.mul(pick(), prim.cast(prim.iota(4, i64, start=draw(st.integers(0, 2))), f32)),
        lambda: prim.where(draw(st.sampled_from([flag, prim.not_(flag), prim.constant(True, bool_)])), pick(), pick()),
        lambda: round_trip(pick()),
        lambda: sliced(pick()),
        lambda: prim.cast(prim.cast(pick(), draw(st.sampled_from([DTYPES["f64"], DTYPES["bf16"]]))), f32),
        lambda: prim.reshape(prim.reshape(pick(), (n * 12,)), shape),
        lambda: prim.expand(prim.max(pick(), (0,)), shape),
    ]
    for _ in range(draw(st.integers(1, 14))):
        made = draw(st.sampled_from(builders))()
        if made.type is x.type:
            values.append(made)
    b.output(y=values[-1], z=pick())
    return b.module()


def outputs(module: Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = {"x": torch.randn(2, 3, 4, generator=generator), "flag": torch.rand(2, 3, 4, generator=generator) < 0.5}
    return Program(module.graph, checked=True)(inputs)


@settings(max_examples=60, deadline=None)
@given(module=modules(), order=st.permutations(PASSES))
def test_clean_up_keeps_every_number_and_settles(module: Module, order: list[Pass]) -> None:
    before, size = outputs(module), len(module.graph)
    ctx = Context(check_rewrite=RewriteChecker())
    for step in order:
        step.run(module, ctx)
        after = outputs(module)
        for name, expected in before.items():
            # Equal as numbers: x + 0 turns -0 into 0.
            assert torch.equal(after[name], expected), f"{step} changed {name}"
    assert len(module.graph) <= size
    for _ in range(4):
        for step in PASSES:
            step.run(module, Context())
    text = str(module)
    for step in PASSES:
        ctx = Context()
        step.run(module, ctx)
        assert not ctx.rewrites, f"{step} does not settle: {ctx.record.rules}"
    assert str(module) == text


@pytest.mark.parametrize("narrow", DTYPES.values(), ids=str)
@pytest.mark.parametrize("wide", DTYPES.values(), ids=str)
def test_a_dtype_that_is_said_to_hold_another_holds_its_extremes(wide: Any, narrow: Any) -> None:
    import ml_dtypes

    if not holds(wide, narrow) or narrow is bool_:
        return
    if narrow.is_float:
        info = ml_dtypes.finfo(numpy_dtype(narrow))
        extremes = [info.max, info.min, info.smallest_normal, info.smallest_subnormal, 1 + info.eps]
    else:
        limits = np.iinfo(numpy_dtype(narrow))
        extremes = [limits.min, limits.max, limits.max - 1]
    array = np.array(extremes, numpy_dtype(narrow))
    np.testing.assert_array_equal(array.astype(numpy_dtype(wide)).astype(numpy_dtype(narrow)), array)
    assert array.astype(numpy_dtype(wide)).tolist() == array.tolist()


def test_ints_are_not_said_to_hold_what_they_cannot() -> None:
    assert not holds(DTYPES["u16"], DTYPES["i8"]) and not holds(DTYPES["f16"], DTYPES["bf16"])
    assert not holds(DTYPES["bf16"], DTYPES["f16"]) and holds(DTYPES["i16"], DTYPES["u8"])


def test_known_stops_at_inputs_files_calls_and_size() -> None:
    graph = Graph()
    x = graph.input("x", tensor(f32, (2,)))
    (random,) = call((), "aten.rand.default", ((2,),), (tensor(f32, (2,)),))
    small, large = prim.iota(4, i64), prim.iota(5, i64)
    values = [
        x,
        random,
        small,
        large,
        prim.neg(small),
        prim.neg(large),
        prim.dim(x, 0),
        prim.add(prim.dim(x, 0), prim.constant(1, i64)),
    ]
    graph.set_outputs({str(i): v for i, v in enumerate(values)})
    known = Known(max_elements=4)
    found = {id(op): known(op) for op in graph.topo()}
    assert [found[id(v.op)] for v in values if v.op] == [False, True, False, True, False, False, False]


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [([1.5, 1.5], "bf16"), ([True, True], "bool"), ([7], "i64"), ([float("nan")] * 3, "f32"), ([-0.0], "f16")],
)
def test_one_number_throughout_is_written_as_a_constant(numbers: list[Any], kind: str) -> None:
    type = tensor(kind, (len(numbers),))
    value = write_down(torch.tensor(numbers), type)
    assert repr(number_of(value)) == repr(numbers[0]) and value.type is type


def test_different_numbers_are_written_as_a_literal_that_reads_back() -> None:
    for kind, numbers in (
        ("f32", [0.1, 1e-30, -3.0]),
        ("i64", [2**62 + 1, -5, 0]),
        ("bool", [True, False, True]),
        ("f32", [0.0, -0.0, 0.0]),
    ):
        type = tensor(kind, (3, 1))
        tensors = torch.tensor(numbers).reshape(3, 1)
        value = write_down(tensors, type)
        assert isinstance(value.op, Weight)
        (back,) = evaluate_constants([value])
        assert back.dtype is tensors.dtype and back.tolist() == tensors.tolist()
        again = write_down(tensors, type).op
        assert isinstance(again, Weight) and again.symbol == value.op.symbol


def test_folding_reads_no_weight_of_a_file(tmp_path: Any) -> None:
    from irlab.weights import File

    b = GraphBuilder()
    missing = b.weight(WeightSymbol("w", File(tmp_path / "absent.safetensors", "w", tensor(f32, (2,)))))
    b.output(y=prim.neg(missing))
    ctx = Context()
    ConstantFolding().run(b.module(), ctx)
    assert not ctx.rewrites
