"""What patterns match, each form of the language with a case that matches and one that must not."""

from __future__ import annotations

import pytest

from irlab import Graph, GraphBuilder, Value, nn, p, prim
from irlab.matching import Match
from irlab.matching.source import MAX_NESTED_LOOPS
from irlab.ops.literals import constant
from irlab.pattern import Pattern, PatternError
from irlab.rewrite import find
from irlab.types import bf16, f32


class Case:
    """A graph over x, y, z: f32[4, 8] and a vector v: f32[8]."""

    def __init__(self) -> None:
        self.builder = GraphBuilder()
        self.x, self.y, self.z = (self.builder.input(n, "f32", (4, 8)) for n in "xyz")
        self.v = self.builder.input("v", "f32", (8,))

    def graph(self, *values: Value) -> Graph:
        self.builder.output(**{f"out{i}": value for i, value in enumerate(values)})
        return self.builder.module().graph


@pytest.fixture
def case() -> Case:
    return Case()


def only(graph: Graph, pattern: object) -> Match:
    (m,) = find(graph, pattern)  # type: ignore[arg-type]
    return m


def count(graph: Graph, pattern: object) -> int:
    return len(list(find(graph, pattern)))  # type: ignore[arg-type]


def number(value: float) -> Value:
    return constant(value, f32)


def test_variables_capture_operands(case: Case) -> None:
    m = only(case.graph(prim.sub(case.x, case.y)), lambda a, b: p.sub(a, b))
    assert m.a is case.x and m.b is case.y
    assert m.ops == (m.root,) and m.roots == (m.root,)
    assert m.captures == {"a": case.x, "b": case.y}


def test_repeated_variable_is_one_value(case: Case) -> None:
    pattern = lambda a: a * p.sigmoid(a)
    assert only(case.graph(prim.mul(case.x, prim.sigmoid(case.x))), pattern).a is case.x
    assert count(case.graph(prim.mul(case.y, prim.sigmoid(case.x))), pattern) == 0


def test_commutative_ops_match_in_both_orders_when_nested(case: Case) -> None:
    pattern = lambda a, b: p.exp(a) + (p.exp(b) * p.neg(a))
    for swap_outer in (False, True):
        for swap_inner in (False, True):
            case = Case()
            product = (prim.exp(case.y), prim.neg(case.x))
            terms = (prim.exp(case.x), prim.mul(*(product[::-1] if swap_inner else product)))
            m = only(case.graph(prim.add(*(terms[::-1] if swap_outer else terms))), pattern)
            assert (m.a, m.b) == (case.x, case.y)


def test_free_operands_of_a_commutative_op_swap_for_the_sake_of_others(case: Case) -> None:
    graph = case.graph(prim.add(prim.mul(case.x, case.y), case.y))
    m = only(graph, lambda a, b: a * b + a)
    assert (m.a, m.b) == (case.y, case.x)


def test_operands_of_other_ops_keep_their_order(case: Case) -> None:
    assert count(case.graph(prim.sub(prim.exp(case.x), case.y)), lambda a, b: a - p.exp(b)) == 0


@pytest.mark.parametrize(
    ("written", "in_graph", "matches"),
    [(0.5, 0.5, True), (0.044715, 0.04471499845, True), (0.5, 0.44, False), (2, 2.0, True), (0.0, 1e-30, False)],
)
def test_numbers_match_within_tolerance(case: Case, written: float, in_graph: float, matches: bool) -> None:
    assert count(case.graph(prim.mul(case.x, number(in_graph))), lambda a: a * written) == matches


def test_infinity_and_integers_are_exact(case: Case) -> None:
    graph = case.graph(prim.maximum(case.x, number(float("-inf"))))
    assert count(graph, lambda a: p.maximum(a, float("-inf"))) == 1
    assert count(graph, lambda a: p.maximum(a, float("inf"))) == 0
    ids = case.builder.input("ids", "i64", (3,))
    graph = case.graph(prim.add(ids, constant(100_000, ids.type.dtype)))
    assert count(graph, lambda a: a + 100_001) == 0
    assert count(graph, lambda a: a + 100_000) == 1


def test_const_captures_the_number(case: Case) -> None:
    graph = case.graph(prim.add(case.x, number(1e-5)))
    m = only(graph, lambda a, eps: a + p.const(eps))
    assert m.eps == 1e-5 and isinstance(m.eps, float)
    assert count(graph, lambda a: a + p.const(1.2e-5, tolerance=0.5)) == 1
    assert count(graph, lambda a: a + p.const()) == 1


def test_attributes_are_literals_in_any_axis_form_or_captures(case: Case) -> None:
    graph = case.graph(prim.mean(case.x, (-1,)))
    assert count(graph, lambda a: p.mean(a, axes=[-1])) == 1
    assert count(graph, lambda a: p.mean(a, axes=(1,))) == 1
    assert count(graph, lambda a: p.mean(a, axes=[0])) == 0
    assert count(graph, lambda a: p.mean(a, axes=[7])) == 0
    m = only(graph, lambda a, k: p.mean(a, axes=p.var("axes"), keepdims=k))
    assert m.axes == (-1,) and m.k is True


def test_dtype_by_name_and_by_position(case: Case) -> None:
    graph = case.graph(prim.cast(case.x, bf16))
    assert count(graph, lambda a: p.cast(a, "bf16")) == count(graph, lambda a: p.cast(a, dtype=bf16)) == 1
    assert count(graph, lambda a: p.cast(a, "f16")) == 0


def test_float_attributes_have_tolerance(case: Case) -> None:
    graph = case.graph(nn.rms_norm(case.x, case.v, 1e-5 * (1 + 1e-9)))
    assert count(graph, lambda a, w: p.rms_norm(a, w, eps=1e-5)) == 1
    assert count(graph, lambda a, w: p.rms_norm(a, w, eps=2e-5)) == 0


def test_maybe_matches_with_and_without_and_says_which(case: Case) -> None:
    pattern = lambda a, was: p.exp(p.maybe(p.cast, a, flag=was))
    m = only(case.graph(prim.exp(prim.cast(case.x, bf16))), pattern)
    assert m.a is case.x and m.was is True and len(m.ops) == 2
    m = only(case.graph(prim.exp(case.x)), pattern)
    assert m.a is case.x and m.was is False and len(m.ops) == 1


def test_maybe_shared_by_two_readers(case: Case) -> None:
    def pattern(a: Pattern) -> Pattern:
        f = p.maybe(p.cast, a)
        return f * p.rsqrt(f)

    cast = prim.cast(case.x, bf16)
    assert only(case.graph(prim.mul(cast, prim.rsqrt(cast))), pattern).a is case.x
    assert only(case.graph(prim.mul(case.x, prim.rsqrt(case.x))), pattern).a is case.x
    # A use outside keeps the cast alive: then the cast itself is what is captured.
    cast = prim.cast(case.y, bf16)
    assert only(case.graph(prim.mul(cast, prim.rsqrt(cast)), prim.neg(cast)), pattern).a is cast


def test_maybe_with_more_operands_and_attributes(case: Case) -> None:
    pattern = lambda a, s, d: p.exp(p.maybe(p.mul, p.maybe(p.cast, a, dtype=d), p.const(s), flag="scaled"))
    m = only(case.graph(prim.exp(prim.mul(case.x, number(3.0)))), pattern)
    assert m.a is case.x and m.s == 3.0 and m.scaled is True and m.d is None
    m = only(case.graph(prim.exp(prim.cast(case.x, bf16))), pattern)
    assert m.a is case.x and m.s is None and m.scaled is False and m.d is bf16


def test_maybe_at_the_root(case: Case) -> None:
    graph = case.graph(prim.cast(prim.exp(case.x), bf16), prim.exp(case.y))
    matches = list(find(graph, lambda a: p.maybe(p.cast, p.exp(a), flag="cast")))
    # The inner exp of the first output also matches, without the cast.
    assert {(m.a.name, m.cast) for m in matches} == {("x", False), ("x", True), ("y", False)}


def test_any_of_takes_the_first_alternative(case: Case) -> None:
    pattern = lambda a, b: p.any_of(p.silu(a), a * p.sigmoid(a), p.neg(b)) + 1.0
    for made, captured in ((nn.silu(case.x), "a"), (prim.neg(case.x), "b")):
        m = only(case.graph(prim.add(made, number(1.0))), pattern)
        assert getattr(m, captured) is case.x
        assert getattr(m, "b" if captured == "a" else "a") is None
    assert count(case.graph(prim.add(prim.mul(case.x, prim.sigmoid(case.x)), number(1.0))), pattern) == 1
    assert count(case.graph(prim.add(prim.exp(case.x), number(1.0))), pattern) == 0


def test_any_of_at_the_root_has_several_root_classes(case: Case) -> None:
    graph = case.graph(nn.gelu(case.x), nn.silu(case.y), prim.exp(case.z))
    assert count(graph, lambda a: p.any_of(p.gelu(a), p.silu(a))) == 2


def test_rest_captures_remaining_operands(case: Case) -> None:
    graph = case.graph(prim.concat((case.x, case.y, case.z), 0))
    m = only(graph, lambda a, rest: p.concat(a, *rest, axis=0))
    assert m.a is case.x and m.rest == (case.y, case.z)
    m = only(graph, lambda some, last: p.concat(*some, last))
    assert m.some == (case.x, case.y) and m.last is case.z
    assert only(graph, lambda every: p.concat(*every)).every == (case.x, case.y, case.z)
    assert count(graph, lambda a, b: p.concat(a, b)) == 0
    assert count(graph, lambda a, b, c: p.concat((a, b, c), -2)) == 1


def test_optional_operands(case: Case) -> None:
    w = case.builder.random_weight("w", "f32", (8, 8))
    bare, biased = case.graph(nn.linear(case.x, w)), Case()
    w2 = biased.builder.random_weight("w", "f32", (8, 8))
    graph = biased.graph(nn.linear(biased.x, w2, biased.v))
    assert count(bare, lambda a, w: p.linear(a, w)) == 1
    assert count(graph, lambda a, w: p.linear(a, w)) == 0, "a bias that is not mentioned must not be there"
    assert count(bare, lambda a, w, b: p.linear(a, w, b)) == 0
    assert only(graph, lambda a, w, b: p.linear(a, w, b)).b is biased.v
    either = lambda a, w, b: p.linear(a, w, p.optional(b))
    assert only(bare, either).b is None
    assert only(graph, either).b is biased.v
    narrow = lambda a, w: p.linear(a, w, p.optional(p.var("b", where=lambda b: b.name == "other")))
    assert count(bare, narrow) == 1 and count(graph, narrow) == 0


def test_predicates_on_values_numbers_and_attributes(case: Case) -> None:
    graph = case.graph(prim.mul(case.x, case.v), prim.mul(case.x, number(2.0)), prim.mean(case.x, (0,)))
    vector = lambda a: a * p.var("w", where=lambda w: w.type.rank == 1 or "w must be a vector")
    assert only(graph, vector).w is case.v
    assert count(graph, lambda a: a * p.const(p.var("k", where=lambda k: k > 2))) == 0
    assert count(graph, lambda a: p.mean(a, axes=p.var("axes", where=lambda axes: axes == (-2,)))) == 1


def test_inner_values_must_have_no_other_use(case: Case) -> None:
    inner = prim.exp(case.x)
    graph = case.graph(prim.neg(inner), inner)
    assert count(graph, lambda a: p.neg(p.exp(a))) == 0
    assert count(graph, lambda a: p.neg(p.shared(p.exp(a)))) == 1
    assert count(graph, lambda a: p.neg(p.exp(a).multi_use())) == 1


def test_a_use_by_another_matched_op_is_fine_but_not_by_a_third(case: Case) -> None:
    def pattern(a: Pattern) -> Pattern:
        e = p.exp(a)
        return p.neg(e) * e

    e = prim.exp(case.x)
    assert count(case.graph(prim.mul(prim.neg(e), e)), pattern) == 1
    e = prim.exp(case.y)
    assert count(case.graph(prim.mul(prim.neg(e), e), prim.sin(e)), pattern) == 0


def test_one_pattern_object_is_one_value(case: Case) -> None:
    def pattern(a: Pattern) -> Pattern:
        e = p.exp(a)
        return p.neg(e) - e

    one, other = prim.exp(case.x), prim.exp(case.x)
    assert count(case.graph(prim.sub(prim.neg(one), other)), pattern) == 0


def test_results_of_one_op(case: Case) -> None:
    def pattern(a: Pattern) -> Pattern:
        halves = p.split(a, sizes=p.var("sizes"))
        return p.neg(halves[0]) + halves[1]

    first, second = prim.split(case.x, (4, 4), -1)
    m = only(case.graph(prim.add(prim.neg(first), second)), pattern)
    assert m.a is case.x and m.sizes == (4, 4)
    # The wrong way round, two different splits, and a result that is used outside.
    assert count(case.graph(prim.add(prim.neg(second), first)), pattern) == 0
    other = prim.split(case.x, (4, 4), -1)
    assert count(case.graph(prim.add(prim.neg(first), other[1])), pattern) == 0
    assert count(case.graph(prim.add(prim.neg(other[0]), other[1]), other[0]), pattern) == 0


def test_named_captures_inner_values(case: Case) -> None:
    m = only(case.graph(prim.neg(prim.exp(case.x))), lambda a: p.neg(p.exp(a).named("e")).named("n"))
    assert m.e.op.opname == "prim.exp" and m.n is m.root.result


def test_deep_patterns_are_split_over_functions(case: Case) -> None:
    depth = 2 * MAX_NESTED_LOOPS + 3

    def pattern(a: Pattern) -> Pattern:
        for i in range(depth):
            a = p.exp(a) + p.const(float(i))
        return a

    value = case.x
    for i in range(depth):
        value = prim.add(number(float(i)), prim.exp(value)) if i % 2 else prim.add(prim.exp(value), number(float(i)))
    assert only(case.graph(value), pattern).a is case.x


def test_constructors_by_dialect_keyword_class_and_name(case: Case) -> None:
    graph = case.graph(prim.add(case.x, case.y))
    for made in (p.prim.add(p.var(), p.var()), p.op(prim.Add, p.var(), p.var()), p.op("prim.add", p.var(), p.var())):
        assert count(graph, made) == 1
    assert p.and_(p.var("a"), p.var("b")).cls is prim.And


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda a: p.rms_norn(a), "did you mean 'rms_norm'"),
        (lambda a: p.mean(a, axis=[-1]), "did you mean 'axes'"),
        (lambda a: p.neg(a, a, a), "takes 1 arguments"),
        (lambda a: p.mul(a), "operand 'y' is missing"),
        (lambda a: p.neg("x"), "'x' is no pattern"),
        (lambda a: a, "must begin with an op"),
        (lambda a, b: p.neg(a), "never uses b"),
        (lambda root: p.neg(root), "cannot be called 'root'"),
        (lambda a: p.exp(a)[1] + 1.0, "one result only"),
        (lambda a, b: (p.neg(a), p.exp(b)), "shares no value"),
        (lambda a: p.neg(a or 1), "no truth value"),
        (lambda a: p.cast(a, "f33"), "unknown dtype"),
        (lambda a, b: p.concat(*a, *b), "only one"),
    ],
)
def test_patterns_that_make_no_sense(case: Case, build: object, message: str) -> None:
    with pytest.raises((PatternError, AttributeError), match=message):
        count(case.graph(prim.neg(case.x)), build)
