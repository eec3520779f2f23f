"""The greedy driver: what a rewrite leaves behind, what it reports, and what it refuses."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from example_rules import FuseRMSNorm

from irlab import Graph, GraphBuilder, Match, Op, Rule, Value, nn, p, prim
from irlab.errors import IRError
from irlab.ir import Loc
from irlab.ops.control import if_
from irlab.ops.literals import constant
from irlab.pattern import Pattern
from irlab.rewrite import find, rewrite
from irlab.types import bf16, bool_, f32, tensor


class DoubleNegation(Rule):
    def pattern(self, x):
        return p.neg(p.neg(x))

    def rewrite(self, m: Match) -> Value:
        return m.x


class AddOfNegation(Rule):
    def pattern(self, x, y):
        return x + p.neg(y)

    def rewrite(self, m: Match) -> Value:
        return prim.sub(m.x, m.y)


def builder() -> tuple[GraphBuilder, Value, Value]:
    b = GraphBuilder()
    return b, b.input("x", "f32", (4, 8)), b.input("y", "f32", (4, 8))


def names(graph: Graph) -> list[str]:
    return [op.opname for op in graph.topo()]


@pytest.mark.parametrize("element", ["f32", "bf16"])
@pytest.mark.parametrize("pause_gc", [False, True])
def test_rms_norm_fuses_back(element: str, pause_gc: bool) -> None:
    b = GraphBuilder()
    x, w = b.input("x", element, ("batch", "seq", 64)), b.random_weight("w", element, (64,))
    norm = nn.RMSNorm(x, w, 1e-5)
    b.add(norm.decompose(), "model.norm")
    b.output(out=b.module().graph.find(prim.Mul)[-1].result)
    graph = b.module().graph
    collecting = gc.isenabled()
    result = rewrite(graph, [FuseRMSNorm], pause_gc=pause_gc)
    assert gc.isenabled() == collecting
    assert result.hits == {"fuse-rms-norm": 1} and result.total == 1 and result
    (fused,) = graph.find(nn.RMSNorm)
    assert fused.eps == 1e-5 and fused.x is x and fused.weight is w
    assert fused.loc == Loc.at("model.norm", made_by="fuse-rms-norm")
    assert names(graph) == ["prim.weight", "nn.rms_norm", "return"]


def test_names_are_kebab_case_of_the_class() -> None:
    class QKVConcat2D(Rule):
        pass

    class Other(Rule, name="mine"):
        pass

    assert (FuseRMSNorm.name, QKVConcat2D.name, Other.name) == ("fuse-rms-norm", "qkv-concat2-d", "mine")


def test_a_replacement_is_matched_again_at_its_root_its_inside_and_its_users() -> None:
    class Unpack(Rule):
        def pattern(self, x):
            return p.exp(x)

        def rewrite(self, m: Match) -> Value:
            # Both matches that this makes possible lie inside or above the replacement, not at its root.
            return prim.sin(prim.neg(prim.neg(prim.cos(m.x))))

    class SinCos(Rule):
        def pattern(self, x):
            return p.abs(p.sin(p.cos(x)))

        def rewrite(self, m: Match) -> Value:
            return prim.tanh(m.x)

    b, x, _ = builder()
    b.output(out=prim.abs(prim.exp(x)))
    graph = b.module().graph
    assert rewrite(graph, [Unpack, DoubleNegation, SinCos]).hits == {"unpack": 1, "double-negation": 1, "sin-cos": 1}
    assert names(graph) == ["prim.tanh", "return"]


def test_the_first_rule_in_the_list_wins() -> None:
    class Other(AddOfNegation, name="other"):
        pass

    b, x, y = builder()
    b.output(out=prim.add(x, prim.neg(y)))
    assert rewrite(b.module().graph, [Other(), AddOfNegation()]).hits == {"other": 1, "add-of-negation": 0}


def test_events_see_the_match_whole_and_the_new_values() -> None:
    seen: list[tuple[str, str, list[str], list[str]]] = []

    def observe(rule: Rule, m: Match, new: tuple[Value, ...]) -> None:
        assert all(op.graph is graph for op in m.ops) and m.root.result.uses
        seen.append((rule.name, m.root.opname, [op.opname for op in m.ops], [v.op.opname for v in new if v.op]))

    b, x, y = builder()
    b.output(out=prim.add(x, prim.neg(y)))
    graph = b.module().graph
    rewrite(graph, [AddOfNegation], on_event=observe)
    assert seen == [("add-of-negation", "prim.add", ["prim.add", "prim.neg"], ["prim.sub"])]


def test_check_sees_the_replacement_before_it_is_attached() -> None:
    class Wrong(Exception):
        pass

    def check(rule: Rule, m: Match, new: tuple[Value, ...]) -> None:
        assert new[0].op is not None and new[0].op.graph is None
        raise Wrong

    b, x, y = builder()
    b.output(out=prim.add(x, prim.neg(y)))
    before = names(b.module().graph)
    with pytest.raises(Wrong):
        rewrite(b.module().graph, [AddOfNegation], check=check)
    assert names(b.module().graph) == before


def test_seconds_are_given_only_on_request() -> None:
    b, x, y = builder()
    b.output(out=prim.add(x, prim.neg(y)))
    module = b.module()
    again = module.clone()
    assert not rewrite(module.graph, [AddOfNegation]).seconds
    assert rewrite(again.graph, [AddOfNegation], timing=True).seconds["add-of-negation"] > (0, 0)


def test_ops_with_several_results() -> None:
    class SplitOfConcat(Rule):
        def pattern(self, xs, sizes):
            return p.split(p.concat(*xs, axis=-1), sizes=sizes, axis=-1)

        def where(self, m: Match) -> bool | str:
            same = tuple(v.type.shape[-1] for v in m.xs) == m.sizes
            return same or "the pieces are cut elsewhere"

        def rewrite(self, m: Match) -> tuple[Value, ...]:
            return m.xs

    b, x, y = builder()
    first, second = prim.split(prim.concat((x, y), -1), (8, 8), -1)
    third, fourth = prim.split(prim.concat((x, y), -1), (4, 12), -1)
    b.output(a=prim.exp(first), b=second, c=third, d=fourth)
    graph = b.module().graph
    assert rewrite(graph, [SplitOfConcat]).total == 1
    assert graph.outputs["b"] is y and len(graph.find(prim.Split)) == 1


class MergeLinears(Rule):
    """Two projections of one value become one matrix product."""

    def pattern(self, x, a, b):
        return p.linear(x, a), p.silu(p.linear(x, b))

    def rewrite(self, m: Match) -> tuple[Value, Value]:
        both = nn.linear(m.x, prim.concat((m.a, m.b), 0))
        n = m.a.type.shape[0]
        return prim.slice(both, -1, 0, n), nn.silu(prim.slice(both, -1, n, n + m.b.type.shape[0]))


def test_several_roots() -> None:
    b, x, _ = builder()
    a, c = b.random_weight("a", "f32", (3, 8)), b.random_weight("c", "f32", (5, 8), 1)
    b.output(one=prim.exp(nn.linear(x, a)), two=prim.neg(nn.silu(nn.linear(x, c))))
    graph = b.module().graph
    (m,) = find(graph, MergeLinears)
    assert [op.opname for op in m.roots] == ["nn.linear", "nn.silu"] and len(m.ops) == 3
    assert rewrite(graph, [MergeLinears]).total == 1
    assert len(graph.find(nn.Linear)) == 1
    graph.topo()


class FuseTwins(Rule):
    """exp of two values that share a factor: an invented rule that can make a cycle."""

    def pattern(self, x, y, s):
        return p.exp(p.shared(x * s)), p.sin(p.shared(y * s))

    def rewrite(self, m: Match) -> tuple[Value, Value]:
        first, second = prim.split(prim.concat((m.x, m.y), 0), (4, 4), 0)
        return first, second


@pytest.mark.parametrize("distance", [0, 1, 5])
def test_a_rewrite_of_several_roots_that_would_make_a_cycle_is_declined(distance: int) -> None:
    b, x, y = builder()
    s = b.input("s", "f32", (8,))
    first = prim.exp(prim.mul(x, s))
    between = first
    for _ in range(distance):
        between = prim.neg(prim.sqrt(between))
    b.output(out=prim.sin(prim.mul(between, s)))
    graph = b.module().graph
    before = names(graph)
    result = rewrite(graph, [FuseTwins])
    assert result.total == 0 and result.declined == {"fuse-twins": 1}
    assert names(graph) == before
    b.output(one=first, two=prim.sin(prim.mul(y, s)))
    assert rewrite(graph, [FuseTwins]).total == 1
    graph.topo()


def test_regions_are_rewritten_too() -> None:
    def region(make: Any) -> Graph:
        inside = GraphBuilder()
        inside.output(out=make(inside.input("v", "f32", (4, 8))))
        return inside.module().graph

    b, x, _ = builder()
    cond = b.input("c", "bool", ())
    assert cond.type is tensor(bool_, ())
    then_ = region(lambda v: prim.neg(prim.neg(v)))
    else_ = region(prim.exp)
    b.output(out=if_(cond, (x,), then_, else_)[0])
    graph = b.module().graph
    assert len(list(find(graph, DoubleNegation))) == 1
    assert rewrite(graph, [DoubleNegation]).total == 1
    assert names(then_) == ["return"]


def test_an_op_matched_twice_over_is_rewritten_once() -> None:
    b, x, _ = builder()
    value = x
    for _ in range(7):
        value = prim.neg(value)
    b.output(out=value)
    graph = b.module().graph
    assert rewrite(graph, [DoubleNegation]).total == 3
    assert names(graph) == ["prim.neg", "return"]


def test_where_tries_the_other_order() -> None:
    class Scale(Rule):
        def pattern(self, x, s):
            return x * s

        def where(self, m: Match) -> bool | str:
            return m.s.type.rank == 1

        def rewrite(self, m: Match) -> Value:
            return prim.add(m.x, m.s)

    b, x, _ = builder()
    b.output(out=prim.mul(b.input("s", "f32", (8,)), x))
    (m,) = find(b.module().graph, Scale)
    assert m.x is x


def _rule(pattern: Any, rewriting: Any, label: str) -> Rule:
    class Made(Rule, name=label):
        def pattern(self, x):
            return pattern(x)

        def rewrite(self, m: Match) -> Any:
            return rewriting(m)

    return Made()


@pytest.mark.parametrize(
    ("rewriting", "message"),
    [
        (lambda m: prim.cast(m.x, bf16), "rule bad-rule replaces a value of type f32.* by one of type bf16"),
        (lambda m: m.root.result, "by itself"),
        (lambda m: prim.neg(m.root.result), "reads the value that it replaces"),
        (lambda m: (m.x, m.x), "replaces 1 values by 2"),
        (lambda m: None, "rewrite gave None"),
        (lambda m: prim.matmul(m.x, m.x), "rule bad-rule: prim.matmul.*inner sizes"),
        (lambda m: prim.exp(prim.sin(m.x)), "rule bad-rule never settles"),
    ],
)
def test_bad_replacements_name_the_rule(rewriting: Any, message: str) -> None:
    b, x, _ = builder()
    b.output(out=prim.exp(x))
    with pytest.raises(IRError, match=message) as caught:
        rewrite(b.module().graph, [_rule(p.exp, rewriting, "bad-rule")])
    assert caught.value.op is not None


def test_the_rule_that_does_not_settle_is_the_one_named() -> None:
    b, x, y = builder()
    b.output(out=prim.add(prim.exp(x), prim.neg(y)))
    flip = _rule(p.exp, lambda m: prim.exp(prim.neg(prim.neg(m.x))), "flip")
    with pytest.raises(IRError, match="rule flip never settles"):
        rewrite(b.module().graph, [AddOfNegation(), flip], limit=100)
    assert gc.isenabled()


def test_a_matcher_shows_its_source_in_tracebacks() -> None:
    import traceback

    def fail(w: Value) -> bool:
        raise KeyError("boom")

    b, x, _ = builder()
    b.output(out=prim.exp(x))
    try:
        list(find(b.module().graph, lambda x: p.exp(p.var("v", where=fail)) if x is None else p.exp(p.var("x", fail))))
    except KeyError:
        assert "<pattern find>" in traceback.format_exc() and "refusal(" in traceback.format_exc()


def test_a_chain_of_two_thousand_detached_ops_attaches() -> None:
    def expand(m: Match) -> Value:
        value: Value = m.x
        for _ in range(2000):
            value = prim.neg(prim.exp(value))
        return value

    b, x, _ = builder()
    b.output(out=prim.sin(x))
    graph = b.module().graph
    rewrite(graph, [_rule(p.sin, expand, "expand"), _rule(lambda x: p.neg(p.exp(x)), lambda m: prim.cos(m.x), "f")])
    assert names(graph) == ["prim.cos"] * 2000 + ["return"]


def test_rewriting_is_deterministic() -> None:
    def run() -> list[str]:
        b, x, y = builder()
        value = prim.add(prim.mul(x, constant(1.0, f32)), prim.neg(prim.neg(y)))
        for _ in range(20):
            value = prim.add(value, prim.neg(prim.add(prim.neg(prim.neg(value)), prim.neg(x))))
        b.output(out=value)
        log: list[str] = []
        record = lambda rule, m, new: log.append(f"{rule.name} {m.root.seq} {len(m.ops)}")
        rewrite(b.module().graph, [DoubleNegation, AddOfNegation], on_event=record)
        return log + names(b.module().graph)

    assert run() == run()


def test_patterns_of_one_rule_may_depend_on_its_fields() -> None:
    class Scaled(Rule):
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def pattern(self, x) -> Pattern:
            return x * self.factor

        def rewrite(self, m: Match) -> Value:
            return m.x

    b, x, _ = builder()
    b.output(out=prim.mul(x, constant(3.0, f32)))
    graph = b.module().graph
    assert not list(find(graph, Scaled(2.0)))
    assert rewrite(graph, [Scaled(2.0), Scaled(3.0)]).hits == {"scaled": 1}
    assert all(isinstance(op, Op) for op in graph.ops())
