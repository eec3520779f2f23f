"""`--why-not`: the words are right, and the explaining matcher finds exactly what the compiled one finds."""

from __future__ import annotations

from typing import Any

import pytest
from example_rules import FuseRMSNorm
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from irlab import Graph, GraphBuilder, Match, Op, Rule, Value, nn, p, prim
from irlab.errors import UsageError
from irlab.explain import Explainer, format_near_misses, why_not
from irlab.matching import Matcher, compile_pattern
from irlab.ops.literals import constant
from irlab.pattern import Pattern, PatternError, Variable
from irlab.pattern.nodes import AnyOf, Maybe, Number, OpPattern, Rest, Result
from irlab.text import printed_values
from irlab.types import bf16, f32


def norm(change: str) -> Graph:
    """An RMSNorm in primitives, with one thing changed."""
    b = GraphBuilder()
    shape = ("batch", "seq", 64)
    x, w = b.input("x", "f32", shape), b.input("w", "f32", shape if change == "rank" else (64,))
    number = lambda value: constant(value, f32)
    square = prim.pow(x, number(3.0 if change == "power" else 2.0))
    mean = prim.mean(square, (-2,) if change == "axes" else (-1,))
    inner = prim.add(mean, prim.exp(x) if change == "eps" else number(1e-5))
    inverse = prim.sqrt(inner) if change == "sqrt" else prim.rsqrt(inner)
    if change == "cast":
        inverse = prim.cast(prim.cast(inverse, bf16), f32)
    n = prim.mul(prim.neg(x) if change == "other x" else x, inverse)
    out = b.add(prim.mul(n, w), "model.norm")
    outputs = {"out": out, "extra": inverse} if change == "uses" else {"out": out}
    b.output(**outputs)
    return b.module().graph


@pytest.mark.parametrize(
    ("change", "matched", "reason"),
    [
        ("power", 7, "the constant 3.0 is not 2"),
        ("axes", 7, "axes of prim.mean is (-2,), the pattern wants (-1,)"),
        ("eps", 7, "expected a constant, found prim.exp"),
        ("sqrt", 7, "expected prim.rsqrt, found prim.sqrt"),
        ("cast", 2, "expected prim.rsqrt, found prim.cast"),
        ("other x", 8, "x is prim.neg here, but the input %x elsewhere"),
        ("uses", 8, "the value of prim.rsqrt has 2 uses, the pattern wants 1"),
        ("rank", 8, "where: weight must be rank 1"),
    ],
)
def test_the_nearest_miss_says_how_far_and_why(change: str, matched: int, reason: str) -> None:
    miss = why_not(norm(change), FuseRMSNorm)[0]
    assert (miss.reason, miss.matched, miss.total) == (reason, matched, 8)
    assert miss.op.loc is not None and miss.op.loc.path == "model.norm"


def test_a_match_is_no_near_miss() -> None:
    graph = norm("nothing")
    assert [miss for miss in why_not(graph, FuseRMSNorm) if miss.matched > 2] == []


def test_a_location_narrows_the_answer() -> None:
    graph = norm("sqrt")
    assert why_not(graph, FuseRMSNorm, at="model.norm")
    with pytest.raises(UsageError, match=r"no op has a location with 'lm_head' in it \(locations are model\.norm"):
        why_not(graph, FuseRMSNorm, at="lm_head")
    with pytest.raises(UsageError, match=r"did you mean 'model\.norm'"):
        why_not(graph, FuseRMSNorm, at="model.nrom")


def test_a_name_as_text_prints_it_chooses_one_op() -> None:
    graph = norm("sqrt")
    (name,) = [name for name, value in printed_values(graph).items() if value is graph.outputs["out"]]
    (miss,) = why_not(graph, FuseRMSNorm, at=name)
    assert miss.op is graph.outputs["out"].op
    with pytest.raises(UsageError, match=r"%0 is the result of prim\.pow, .* begins with prim\.mul"):
        why_not(graph, FuseRMSNorm, at="%0")
    with pytest.raises(UsageError, match=r"no op's result is called %99"):
        why_not(graph, FuseRMSNorm, at="%99")
    with pytest.raises(UsageError, match="%x is an input of the graph"):
        why_not(graph, FuseRMSNorm, at="%x")


def test_the_text_groups_near_misses_of_one_kind() -> None:
    b = GraphBuilder()
    x, w = b.input("x", "f32", (4, 64)), b.input("w", "f32", (64,))
    for i in range(5):
        squares = prim.pow(x, constant(2.0, f32))
        n = prim.mul(x, prim.sqrt(prim.add(prim.mean(squares, (-1,)), constant(1e-5, f32))))
        x = b.add(prim.mul(n, w), f"layers.{i}.norm")
    b.output(out=x)
    text = format_near_misses(FuseRMSNorm, why_not(b.module().graph, FuseRMSNorm))
    assert "fuse-rms-norm: " in text
    assert "prim.mul at layers.0.norm: matched 7 of 8 pattern nodes; expected prim.rsqrt, found prim.sqrt" in text
    assert "and 4 more like this: layers.1.norm, layers.2.norm, layers.3.norm" in text


def test_nothing_to_explain() -> None:
    b = GraphBuilder()
    b.output(out=prim.exp(b.input("x", "f32", (4,))))
    assert "no op that its pattern could begin with" in format_near_misses(
        FuseRMSNorm, why_not(b.module().graph, FuseRMSNorm)
    )


def test_a_declined_rewrite_is_explained_by_its_cycle() -> None:
    class Twins(Rule):
        def pattern(self, x, y, s):
            return p.exp(p.shared(x * s)), p.sin(p.shared(y * s))

        def rewrite(self, m: Match) -> tuple[Value, ...]:
            return prim.split(prim.concat((m.x, m.y), 0), (4, 4), 0)

    b = GraphBuilder()
    x, s = b.input("x", "f32", (4, 8)), b.input("s", "f32", (8,))
    b.output(out=prim.sin(prim.mul(prim.neg(prim.exp(prim.mul(x, s))), s)))
    (miss,) = why_not(b.module().graph, Twins)
    assert "cycle" in miss.reason and miss.matched == miss.total


def test_an_unmentioned_operand_is_named() -> None:
    class Plain(Rule):
        def pattern(self, x, w):
            return p.silu(p.linear(x, w))

    b = GraphBuilder()
    x, w = b.input("x", "f32", (4, 8)), b.random_weight("w", "f32", (8, 8))
    b.output(out=nn.silu(nn.linear(x, w, b.random_weight("b", "f32", (8,), 1))))
    (miss,) = why_not(b.module().graph, Plain)
    assert miss.reason == "the operand 'bias' is there, the pattern mentions none"


# Agreement on random patterns and graphs that nearly are what they describe. Every value is f32[4, 4].

UNARY = {"neg": prim.neg, "exp": prim.exp, "sin": prim.sin}
BINARY = {"add": prim.add, "mul": prim.mul, "sub": prim.sub}
NUMBERS = (0.5, 2.0)


def full(number: float) -> Value:
    return constant(number, f32, (4, 4))


@st.composite
def patterns(draw: st.DrawFn) -> tuple[Pattern, ...]:
    names = [Variable(n) for n in "abc"]
    built: list[Pattern] = []

    def node(depth: int) -> Any:
        kinds = ["var", "var", "number", "const"]
        if depth:
            several = ["maybe", "maybe2", "any", "shared", "again", "cumsum", "concat", "split"]
            kinds = [*UNARY, *BINARY, *BINARY, "var", *several]
        kind = draw(st.sampled_from(kinds))
        if kind == "var":
            return draw(st.sampled_from(names))
        if kind == "number":
            return draw(st.sampled_from(NUMBERS))
        if kind == "const":
            return p.const(Variable(draw(st.sampled_from("kl"))))
        if kind == "again" and built:
            return draw(st.sampled_from(built))
        made: Pattern
        if kind in UNARY or kind == "again":
            made = getattr(p, kind if kind in UNARY else "exp")(node(depth - 1))
        elif kind in BINARY:
            made = getattr(p, kind)(node(depth - 1), node(depth - 1))
        elif kind == "maybe":
            made = p.maybe(p.neg, node(depth - 1), flag=draw(st.sampled_from([None, "flag"])))
        elif kind == "maybe2":
            made = p.maybe(p.mul, node(depth - 1), node(0))
        elif kind == "any":
            made = p.any_of(node(depth - 1), node(depth - 1))
        elif kind == "shared":
            made = p.shared(p.exp(node(depth - 1)))
        elif kind == "cumsum":
            made = p.cumsum(node(depth - 1), axis=draw(st.sampled_from([0, -1, Variable("axis")])))
        elif kind == "concat":
            made = p.slice(p.concat(node(depth - 1), *Variable("rest")), axis=0)
        else:
            halves = p.split(node(depth - 1))
            made = p.concat(halves[0], halves[draw(st.integers(0, 1))])
        built.append(made)
        return made

    def root() -> Pattern:
        kind = draw(st.sampled_from([*BINARY, "maybe", "sin"]))
        if kind in BINARY:
            made: Pattern = getattr(p, kind)(node(2), node(2))
            return made
        return p.sin(node(3)) if kind == "sin" else p.maybe(p.neg, p.exp(node(2)))

    return tuple(root() for _ in range(draw(st.sampled_from([1, 1, 1, 2]))))


class Sculptor:
    """Builds graphs that a pattern matches, but for a mistake here and there."""

    def __init__(self, draw: st.DrawFn, builder: GraphBuilder) -> None:
        self.draw = draw
        self.free: list[Value] = [builder.input(n, "f32", (4, 4)) for n in "xy"]
        self.captured: dict[str, Any] = {}
        self.made: dict[Pattern, Any] = {}

    def oops(self) -> bool:
        return self.draw(st.integers(0, 19)) == 0

    def value(self, pattern: Pattern) -> Value:
        if pattern not in self.made or self.oops():
            self.made[pattern] = self.build(pattern)
            if self.made[pattern].op is not None and self.made[pattern].type.shape == (4, 4) and self.oops():
                self.free.append(self.made[pattern])
        found: Value = self.made[pattern]
        return found

    def build(self, pattern: Pattern) -> Value:
        draw = self.draw
        match pattern:
            case Variable(name=name):
                fresh = draw(st.sampled_from(self.free))
                return fresh if self.oops() else self.captured.setdefault(name, fresh)
            case Number(variable=Variable(name=name)):
                return full(self.captured.setdefault(name, draw(st.sampled_from(NUMBERS))))
            case Number(value=number):
                return full(number if number is not None else 0.5)
            case Maybe():
                return self.value(pattern.wrapper if draw(st.booleans()) else pattern.inner)
            case AnyOf(alternatives=alternatives):
                return self.value(draw(st.sampled_from(alternatives)))
            case Result(op=op, index=index):
                if op not in self.made or self.oops():
                    self.made[op] = prim.split(self.value(op.children[0]), (2, 2), 0)
                half: Value = self.made[op][index]
                return half
            case OpPattern():
                return self.op(pattern)
        raise AssertionError(pattern)

    def op(self, pattern: OpPattern) -> Value:
        draw = self.draw
        name = pattern.cls.opname.removeprefix("prim.")
        if name == "concat":
            values = [self.value(c) for c in pattern.children if not isinstance(c, Rest)]
            values += [
                draw(st.sampled_from(self.free)) for _ in range(draw(st.integers(0, 2)) if len(values) == 1 else 0)
            ]
            return prim.concat(tuple(values), 0)
        if name == "slice":
            return prim.slice(self.value(pattern.children[0]), 0, 0, 4)
        if name == "cumsum":
            return prim.cumsum(self.value(pattern.children[0]), draw(st.sampled_from([0, 1])))
        values = [self.value(child) for child in pattern.children]
        if self.oops() or (pattern.cls.commutative and draw(st.booleans())):
            values.reverse()
        table = UNARY if name in UNARY else BINARY
        function: Any = table[draw(st.sampled_from(list(table))) if self.oops() else name]
        made: Value = function(*values)
        return made


@st.composite
def cases(draw: st.DrawFn) -> tuple[Graph, tuple[Pattern, ...]]:
    pattern = draw(patterns())
    b = GraphBuilder()
    sculptor = Sculptor(draw, b)
    outputs: list[Value] = []
    for _ in range(draw(st.integers(1, 2))):
        outputs += [sculptor.value(root) for root in pattern]
        sculptor.captured, sculptor.made = {}, {}
        sculptor.free.append(outputs[-1])
    outputs += [v for v in sculptor.free if v.op is not None and sculptor.oops()]
    b.output(**{f"o{i}": value for i, value in enumerate(outputs)})
    return b.module().graph, pattern


def compiled_match(matchers: list[Matcher], op: Op) -> Match | None:
    return next((m for one in matchers if one.cls is type(op) and (m := one.match(op)) is not None), None)


@settings(max_examples=300, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(cases(), st.booleans())
def test_both_matchers_agree(case: tuple[Graph, tuple[Pattern, ...]], judged: bool) -> None:
    graph, pattern = case
    where = (lambda m: len(m.ops) % 2 == 0 or "an odd number of ops") if judged else None
    try:
        matchers = compile_pattern(pattern, "random", where)
    except PatternError:  # too many alternatives, or roots that share nothing
        return
    explainer = Explainer(pattern, where)
    classes = {form.roots[0].cls for form in explainer.forms}
    for op in graph.ops():
        if type(op) not in classes:
            continue
        by_code, by_data = compiled_match(matchers, op), explainer.match(op)
        assert (by_code is None) == (by_data is None)
        if by_code is not None and by_data is not None:
            event("a match")
            assert by_code.captures == by_data.captures
            assert set(by_code.ops) == set(by_data.ops) and by_code.roots == by_data.roots
        else:
            event("no match")
            miss = explainer.near_miss(op)
            assert miss is not None and 0 <= miss.matched <= miss.total and miss.reason
