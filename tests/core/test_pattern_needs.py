"""Patterns for what real models need, one test or more for each section of docs/patterns.md."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from irlab import Context, GraphBuilder, Match, Module, Rule, Value, find, nn, p, prim
from irlab.diff import RewriteChecker
from irlab.explain import Explainer, why_not
from irlab.ir import Graph
from irlab.ops.control import if_
from irlab.pattern import PatternError
from irlab.rewrite import patterns_of
from irlab.testing import assert_equivalent
from irlab.types import bf16, bool_, f32, tensor

Pattern = Callable[..., Any]


def graph_of(build: Callable[..., Value | tuple[Value, ...]], *shapes: tuple[int, ...]) -> Module:
    """The module of a function of inputs a, b, c ... of these shapes."""
    b = GraphBuilder()
    made = build(*[b.input(name, "f32", shape) for name, shape in zip("abcdefgh", shapes or [(4, 8)])])
    b.output(**{f"y{i}": value for i, value in enumerate(made if isinstance(made, tuple) else (made,))})
    return b.module()


def matches(module: Module, pattern: Pattern) -> list[Match]:
    """The matches of the compiled pattern, which the explaining matcher must agree with."""
    found = list(find(module, pattern))
    explainer = Explainer(patterns_of(pattern, "test"))
    ops = [op for op in module.graph.topo() if explainer.match(op) is not None]
    assert {m.root for m in found if m.root.graph is module.graph} == set(ops)
    return found


def rewritten(module: Module, rule: Rule) -> Graph:
    """The graph after the rule, each rewrite checked in numbers, and the whole compared."""
    new = module.clone()
    Context(check_rewrite=RewriteChecker()).rewrite(new.graph, [rule])
    assert_equivalent(module, new)
    return new.graph


def constant(number: float) -> Value:
    return prim.constant(number, f32)


# Chains


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("left", [True, False])
def test_a_chain_matches_in_any_order_and_association(order: tuple[int, ...], left: bool) -> None:
    def build(x: Value, y: Value) -> Value:
        a, b, c = (((x, constant(0.5), prim.exp(y))[i]) for i in order)
        return prim.mul(prim.mul(a, b), c) if left else prim.mul(a, prim.mul(b, c))

    module = graph_of(build, (4, 8), (4, 8))
    (m,) = matches(module, lambda x, y: p.chain(p.mul, x, 0.5, p.exp(y)))
    assert (m.x.name, m.y.name) == ("a", "b")
    assert not matches(module, lambda x, y: p.chain(p.mul, x, 0.25, p.exp(y)))


def test_a_chain_of_four_matches_in_all_its_trees() -> None:
    terms = [prim.neg, prim.exp, prim.abs, prim.tanh]

    def trees(values: list[Value]) -> list[Value]:
        if len(values) == 1:
            return values
        return [
            prim.add(left, right)
            for cut in range(1, len(values))
            for left in trees(values[:cut])
            for right in trees(values[cut:])
        ]

    pattern = lambda w, x, y, z: p.chain(p.add, p.neg(w), p.exp(x), p.abs(y), p.tanh(z))
    shapes = [(2,)] * 4
    number = len(trees([constant(0.0)] * 4))
    assert number == 5
    for permutation in itertools.permutations(range(4)):
        for tree in range(number):

            def build(*inputs: Value, order: tuple[int, ...] = permutation, tree: int = tree) -> Value:
                return trees([terms[i](inputs[i]) for i in order])[tree]

            assert len(list(find(graph_of(build, *shapes), pattern))) == 1


def test_a_chain_is_consumed() -> None:
    """A partial product that is used elsewhere stops the match, as any inner value."""

    def build(x: Value, y: Value) -> tuple[Value, Value]:
        inner = prim.mul(x, constant(0.5))
        return prim.mul(inner, prim.exp(y)), inner

    assert not matches(graph_of(build, (4,), (4,)), lambda x, y: p.chain(p.mul, x, 0.5, p.exp(y)))


def test_chains_that_make_no_sense() -> None:
    with pytest.raises(PatternError, match=r"prim\.sub is not commutative"):
        p.chain(p.sub, p.var("x"), p.var("y"))
    with pytest.raises(PatternError, match="a chain of 5 terms"):
        p.chain(p.mul, *[p.var(name) for name in "abcde"])


# Optional casts, either-or


class AnyGelu(Rule):
    def pattern(self, x: Any) -> Any:
        exact = p.erf(x * 0.7071067811865476)
        by_tanh = p.tanh((x + x**3 * 0.044715) * 0.7978845608028654).named("tanh")
        return p.chain(p.mul, x, 0.5, p.any_of(exact, by_tanh) + 1.0)

    def rewrite(self, m: Match) -> Value:
        return nn.gelu(m.x, "none" if m.tanh is None else "tanh")


def exact_cdf(x: Value) -> Value:
    return prim.add(prim.erf(prim.mul(x, constant(0.7071067811865476))), constant(1.0))


def tanh_cdf(x: Value) -> Value:
    cubic = prim.mul(prim.pow(x, constant(3.0)), constant(0.044715))
    return prim.add(prim.tanh(prim.mul(prim.add(x, cubic), constant(0.7978845608028654))), constant(1.0))


@pytest.mark.parametrize(("cdf", "approximate"), [(exact_cdf, "none"), (tanh_cdf, "tanh")])
def test_either_form_of_gelu(cdf: Callable[[Value], Value], approximate: str) -> None:
    for build in (
        lambda x: prim.mul(prim.mul(x, constant(0.5)), cdf(x)),
        lambda x: prim.mul(prim.mul(constant(0.5), cdf(x)), x),
        lambda x: prim.mul(constant(0.5), prim.mul(cdf(x), x)),
    ):
        (gelu,) = rewritten(graph_of(build), AnyGelu()).find(nn.Gelu)
        assert gelu.approximate == approximate


def test_a_cast_before_after_or_nowhere() -> None:
    def pattern(x: Any, w: Any) -> Any:
        wide = p.maybe(p.cast, x, flag="wide")
        return p.maybe(p.cast, wide * p.rsqrt(p.mean(wide**2, axes=[-1])), flag="narrow") * w

    def build(x: Value, before: bool, after: bool) -> Value:
        wide = prim.cast(prim.cast(x, bf16), f32) if before else x
        n = prim.mul(wide, prim.rsqrt(prim.mean(prim.pow(wide, constant(2.0)), (-1,))))
        if after:
            n = prim.cast(n, bf16)
        return prim.mul(n, prim.cast(prim.neg(x), n.type.dtype) if after else prim.neg(x))

    for before, after in itertools.product((False, True), repeat=2):
        module = graph_of(lambda x, b=before, a=after: build(x, b, a))
        (m,) = matches(module, pattern)
        assert (m.wide, m.narrow) == (before, after)


# Variadic operands, several results


class FlattenConcat(Rule):
    def pattern(self, inner: Any, rest: Any, axis: Any) -> Any:
        return p.concat(p.concat(*inner, axis=axis), *rest, axis=axis)

    def rewrite(self, m: Match) -> Value:
        return prim.concat((*m.inner, *m.rest), m.axis)


def test_concatenations_of_any_length_flatten() -> None:
    build = lambda a, b, c: prim.concat((prim.concat((prim.concat((a, b), 0), c), 0), a, b), 0)
    graph = rewritten(graph_of(build, (1, 2), (2, 2), (3, 2)), FlattenConcat())
    (left,) = graph.find(prim.Concat)
    assert [value.name for value in left.xs] == ["a", "b", "c", "a", "b"]
    crossed = lambda a: prim.concat((prim.concat((a, a), 0), prim.concat((a, a), 0)), 1)
    assert len(rewritten(graph_of(crossed, (2, 2)), FlattenConcat()).find(prim.Concat)) == 3


def test_the_rest_may_stand_first_or_between() -> None:
    module = graph_of(lambda a, b, c: prim.concat((a, b, c, a), 0), (1, 2), (2, 2), (3, 2))
    (m,) = matches(module, lambda first, rest, last: p.concat(first, *rest, last))
    assert (m.first.name, [v.name for v in m.rest], m.last.name) == ("a", ["b", "c"], "a")
    (m,) = matches(module, lambda rest, last: p.concat(*rest, last))
    assert [v.name for v in m.rest] == ["a", "b", "c"]


def test_halves_of_one_product() -> None:
    def swiglu(x: Any, w: Any) -> Any:
        half = p.split(p.linear(x, w), axis=-1)
        return p.silu(half[0]) * half[1]

    def build(x: Value, w: Value, turned: bool = False) -> Value:
        gate, up = prim.split(nn.linear(x, w), (6, 6), -1)
        return prim.mul(nn.silu(up if turned else gate), gate if turned else up)

    assert len(matches(graph_of(build, (4, 8), (12, 8)), swiglu)) == 1
    assert not matches(graph_of(lambda x, w: build(x, w, True), (4, 8), (12, 8)), swiglu)


def test_three_projections_of_one_value() -> None:
    module = graph_of(lambda x, q, k, v: tuple(nn.linear(x, w) for w in (q, k, v)), (4, 8), (8, 8), (2, 8), (3, 8))
    found = matches(module, lambda x, q, k, v: (p.linear(x, q), p.linear(x, k), p.linear(x, v)))
    assert found and {len({m.q, m.k, m.v}) for m in found} == {3}


# Across the cache


def test_attention_through_the_cache_which_is_an_output_too() -> None:
    heads, cache = (1, 2, 3, 4), (1, 2, 5, 4)

    def build(q: Value, k: Value, v: Value, old_k: Value, old_v: Value) -> tuple[Value, ...]:
        keys, values = nn.kv_update(old_k, k), nn.kv_update(old_v, v)
        return nn.attention(q, keys, values, causal=True, scale=0.5), keys, values

    def pattern(q: Any, k: Any, v: Any, old_k: Any, old_v: Any, shared: bool = True) -> Any:
        keys, values = p.kv_update(old_k, k), p.kv_update(old_v, v)
        if shared:
            keys, values = p.shared(keys), p.shared(values)
        return p.attention(q, keys, values, p.optional(p.var("mask")))

    module = graph_of(build, heads, heads, heads, cache, cache)
    (m,) = matches(module, lambda q, k, v, old_k, old_v: pattern(q, k, v, old_k, old_v))
    assert (m.k.name, m.old_k.name, m.mask) == ("b", "d", None)
    assert not matches(module, lambda q, k, v, old_k, old_v: pattern(q, k, v, old_k, old_v, shared=False))


# Attributes


def test_conditions_on_attributes() -> None:
    module = graph_of(lambda x: prim.topk(x, 2)[0])
    assert matches(module, lambda x: p.topk(x, k=lambda k: k <= 8))
    assert not matches(module, lambda x: p.topk(x, k=lambda k: k > 8))
    (m,) = matches(module, lambda x, n: p.topk(x, k=p.var("n", where=lambda k: k == 2)))
    assert m.n == 2
    assert matches(graph_of(lambda x: prim.cast(x, bf16)), lambda x: p.cast(x, dtype=lambda to: to.bits == 16))


@pytest.mark.parametrize(
    ("condition", "reason"),
    [(lambda k: k > 8, "k of prim.topk is 2"), (lambda k: k > 8 or f"{k} is too few", "2 is too few")],
)
def test_a_condition_on_an_attribute_is_explained(condition: Callable[[int], bool | str], reason: str) -> None:
    class Top(Rule):
        def pattern(self, x: Any) -> Any:
            return p.neg(p.topk(x, k=condition)[0])

    module = graph_of(lambda x: prim.neg(prim.topk(x, 2)[0]))
    (miss,) = why_not(module.graph, Top)
    assert miss.reason == reason


def test_a_condition_inside_of_maybe() -> None:
    pattern = lambda x: p.exp(p.maybe(p.cast, x, dtype=lambda to: to.is_float))
    (m,) = matches(graph_of(lambda x: prim.exp(prim.cast(prim.cast(x, bf16), f32))), pattern)
    assert m.x.op is not None and m.x.type.dtype is bf16


# Regions


class FuseSilu(Rule):
    def pattern(self, x: Any) -> Any:
        return x * p.sigmoid(x)

    def rewrite(self, m: Match) -> Value:
        return nn.silu(m.x)


def test_rules_and_find_look_into_regions() -> None:
    def region(build: Callable[[Value], Value]) -> Graph:
        graph = Graph()
        graph.output(y=build(graph.input("x", tensor(f32, (4, 8)))))
        return graph

    silu = lambda x: prim.mul(x, prim.sigmoid(x))
    inner = lambda x: if_(prim.constant(False, bool_), (x,), region(silu), region(prim.neg))[0]
    module = graph_of(lambda x: if_(prim.constant(True, bool_), (x,), region(inner), region(silu))[0])
    found = list(find(module, lambda x: x * p.sigmoid(x)))
    assert len(found) == 2 and all(m.root.graph is not module.graph for m in found)
    assert not list(find(rewritten(module, FuseSilu()), lambda x: x * p.sigmoid(x)))
    names = [m.x.name for m in matches(module, lambda c, x: p.ctl.if_(c, x))]
    assert names == ["a", "x"]


# Matching only


def test_find_takes_functions_patterns_and_rules_and_changes_nothing() -> None:
    module = graph_of(lambda x: prim.mul(x, prim.sigmoid(x)))
    text = str(module)
    for question in (FuseSilu, FuseSilu(), lambda x: x * p.sigmoid(x), p.sigmoid(p.var("x"))):
        (m,) = find(module, question)
        assert m.x.name == "a"
    assert str(module) == text
