"""IR text: what is printed reads back as the same module, and bad text is refused where it is wrong."""

from __future__ import annotations

import math
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import irlab
import irlab.text
from irlab import GraphBuilder, dims, nn, prim
from irlab.errors import IRError, IrlabError, ParseError
from irlab.ir import Graph, Loc, Module, Weight
from irlab.ops.control import if_
from irlab.testing.strategies import attribute_values, modules, odd_names, weight_symbols
from irlab.text import parse_module, print_module
from irlab.text.attributes import value_text
from irlab.text.cursor import Cursor
from irlab.text.values import ValueReader
from irlab.types import bool_, f32, i64, tensor
from irlab.verify import verify
from irlab.weights import Array, File, Random, Recipe, WeightSymbol


def text_of(body: str, inputs: str = "%x: f32[2, 3]", table: str = "") -> str:
    return f'irlab 1\nmodule "m"\n{table}\ngraph({inputs}) {{\n{body}\n}}\n'


def small_module() -> Module:
    b = GraphBuilder("small")
    x = b.input("x", "f32", ("batch", 4))
    w = b.random_weight("model.norm.weight", "f32", (4,), seed=7)
    h = b.add(nn.rms_norm(x, w, eps=1e-5), "model.norm")
    b.output(out=prim.add(h, prim.constant(2.0, f32)))
    return b.module()


# What is printed


def test_the_printed_form() -> None:
    module = small_module()
    module.metadata["licence"] = "mit"
    assert str(module) == (
        "irlab 1\n"
        'module "small" {licence="mit"}\n'
        "\n"
        "@model.norm.weight : f32[4] = random(seed=7)\n"
        "\n"
        "graph(%x: f32[batch, 4]) {\n"
        '  %0 = nn.rms_norm(%x, @model.norm.weight) {eps=1e-05} : f32[batch, 4]  loc("model.norm")\n'
        "  %1 = prim.add(%0, f32(2.0))                          : f32[batch, 4]\n"
        "  return out=%1\n"
        "}\n"
    )


def test_the_documented_example_is_what_is_printed() -> None:
    example = textwrap.dedent((irlab.text.__doc__ or "").partition("\n\n")[2].partition("    module    =")[0]).strip()
    assert str(parse_module(example)) == example + "\n"


def test_an_attribute_that_repeats_the_result_type_is_left_out() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", ("batch", 4))
    b.output(y=prim.cast(prim.reshape(x, (dims.symbol("batch"), 2, 2)), i64))
    text = str(b.module())
    assert "prim.reshape(%x) : f32[batch, 2, 2]" in text
    assert "prim.cast(%0)    : i64[batch, 2, 2]" in text


def test_missing_operands_print_as_none_in_the_middle_only() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", (2, 4))
    bias = b.random_weight("b", "f32", (4,))
    b.output(y=nn.layer_norm(x, None, bias), z=nn.rms_norm(x))
    text = str(b.module())
    assert "nn.layer_norm(%x, none, @b)" in text
    assert "nn.rms_norm(%x) " in text


def test_regions_print_nested_and_number_their_own_values() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", (2,))
    then, other = Graph(), Graph()
    a = then.input("a", x.type)
    then.output(y=prim.add(a, a))
    other.output(y=other.input("a", x.type))
    (y,) = if_(prim.constant(True, bool_), (prim.neg(x),), then, other)
    b.output(y=y)
    module = b.module()
    assert str(module).partition("graph")[2] == (
        "(%x: f32[2]) {\n"
        "  %0 = prim.neg(%x)           : f32[2]\n"
        "  %1 = ctl.if(bool(true), %0) : f32[2]\n"
        "    then(%a: f32[2]) {\n"
        "      %0 = prim.add(%a, %a) : f32[2]\n"
        "      return y=%0\n"
        "    }\n"
        "    else(%a: f32[2]) {\n"
        "      return y=%a\n"
        "    }\n"
        "  return y=%1\n"
        "}\n"
    )
    assert str(parse_module(str(module))) == str(module)


def test_files_are_named_relative_to_the_text(tmp_path: Path) -> None:
    b = GraphBuilder()
    symbol = WeightSymbol("w", File(tmp_path / "weights" / "m.safetensors", "w", tensor(f32, (4,))))
    b.output(w=b.weight(symbol))
    text = print_module(b.module(), tmp_path / "ir")
    assert '@w : f32[4] = file("../weights/m.safetensors", "w")' in text
    again = irlab.parse(text, tmp_path / "ir")
    assert print_module(again, tmp_path / "ir") == text
    assert irlab.parse(str(again)).weights == again.weights
    (recipe,) = [s.recipe for s in again.weights.values()]
    assert isinstance(recipe, File)
    assert recipe.path.resolve() == (tmp_path / "weights" / "m.safetensors").resolve()


def test_numbers_in_memory_show_and_are_refused_by_the_parser() -> None:
    import numpy as np

    b = GraphBuilder()
    b.output(w=b.weight(WeightSymbol("w", Array(tensor(f32, (2,)), np.zeros(2, np.float32)))))
    assert "@w : f32[2] = array(...)" in str(b.module())
    with pytest.raises(ParseError, match="array"):
        parse_module(str(b.module()))


def test_printing_does_not_need_a_correct_graph() -> None:
    module = small_module()
    add, norm = module.graph.find(prim.Add)[0], module.graph.find(nn.RMSNorm)[0]
    norm.operands = (add.results[0], *norm.operands[1:])  # a cycle
    assert "nn.rms_norm(%1" in str(module)
    add.operands = (prim.neg(module.graph.inputs[0]), add.operands[1])  # a detached operand
    assert "prim.add(%?0, f32(2.0))" in str(module)


def test_values_with_one_name_are_told_apart() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", (2,))
    y, z = b.add(prim.neg(x)), b.add(prim.abs(x))
    y.name = z.name = "x"
    b.output(a=y, b=z)
    text = str(b.module())
    assert "return a=%x_1, b=%x_2" in text
    assert str(parse_module(text)) == text


# Round trips


@given(modules())
def test_modules_round_trip(module: Module) -> None:
    verify(module)
    text = str(module)
    again = parse_module(text)
    verify(again)
    assert str(again) == text


@settings(max_examples=40)
@given(modules(max_ops=6, names=odd_names))
def test_odd_names_round_trip(module: Module) -> None:
    text = str(module)
    assert str(parse_module(text)) == text


@settings(max_examples=40)
@given(modules())
def test_lines_read_the_slow_way_give_the_same(module: Module) -> None:
    """A comment at the end of each line keeps the parser from recognising lines."""
    text = str(module)
    commented = "".join(f"{line} # why\n" for line in text.splitlines())
    assert str(parse_module(commented)) == text


@settings(max_examples=40)
@given(modules())
def test_white_space_does_not_matter(module: Module) -> None:
    text = str(module)
    assert str(parse_module(text.replace("  ", "\t ").replace("\n", "\r\n"))) == text


@given(attribute_values())
@example(-0.0)
@example((dims.symbol("none"), dims.symbol("f32") + 1, -dims.symbol("inf")))
@example({"a": (1, 1.0, True)})
@example("\ud800 \u2028 \x00")
def test_attribute_values_round_trip(value: Any) -> None:
    text = value_text(value)
    cursor = Cursor(text)
    read = ValueReader(cursor, None).value()
    assert cursor.pos == len(text)
    assert same(read, value)


def same(a: Any, b: Any) -> bool:
    """Equality that tells 1 from 1.0 and True, 0.0 from -0.0, and takes nan for itself."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@given(st.lists(weight_symbols, max_size=4, unique_by=lambda symbol: symbol.name))
def test_recipes_round_trip(symbols: list[WeightSymbol]) -> None:
    b = GraphBuilder()
    b.output(**{f"o{i}": b.weight(symbol) for i, symbol in enumerate(symbols)})
    text = str(b.module())
    again = parse_module(text)
    assert str(again) == text
    assert list(again.weights.values()) == symbols or "nan" in text


def test_weights_that_nothing_reads_stay_in_the_table() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", (2,))
    for name in ("unused", "used"):
        b.random_weight(name, "f32", (2,))
    b.output(y=prim.add(x, b.random_weight("used", "f32", (2,))))
    text = str(b.module())
    again = parse_module(text)
    assert list(again.weights) == list(b.module().weights) or sorted(again.weights) == ["unused", "used"]
    assert str(again) == text


def test_one_literal_is_one_op() -> None:
    module = parse_module(text_of("%0 = prim.add(%x, f32(2.0))\n%1 = prim.mul(%0, f32(2))\nreturn y=%1"))
    assert len(module.graph.find(prim.Constant)) == 1


def test_a_tied_weight_is_one_op() -> None:
    text = text_of("%0 = prim.add(@w, @w)\nreturn y=%0", "", "@w : f32[2] = random()")
    assert len(parse_module(text).graph.find(Weight)) == 1


def test_numbers_keep_every_bit() -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", (2,))
    for number in (math.inf, -math.inf, math.nan, -0.0, 1e-45, 0.1, 1e300):
        x = prim.add(x, prim.constant(number, f32))
    b.output(y=x)
    text = str(b.module())
    for shown in ("f32(inf)", "f32(-inf)", "f32(nan)", "f32(-0.0)", "f32(1e-45)", "f32(0.1)", "f32(1e+300)"):
        assert shown in text
    assert str(parse_module(text)) == text


def test_metadata_round_trips() -> None:
    module = small_module()
    module.metadata = {
        "config": {"hidden_size": 64, "rope": {"theta": 1e4, "factor": None}, "heads": [1, 2], "id2label": {0: "a"}},
        "tokenizer": "some/where",
        "odd key": [True, math.inf, "ü", "x" * 120],
    }
    again = parse_module(str(module))
    assert again.metadata == module.metadata
    assert str(again) == str(module)


def test_locations_round_trip() -> None:
    module = small_module()
    loc = Loc.at('a "quoted" path', "model.py:12", "fuse-rms-norm")
    module.graph.find(nn.RMSNorm)[0].loc = loc
    text = str(module)
    assert 'loc("a \\"quoted\\" path", source="model.py:12", made_by="fuse-rms-norm")' in text
    assert parse_module(text).graph.find(nn.RMSNorm)[0].loc is loc


@dataclass(frozen=True)
class Sprinkle(Recipe):
    """A recipe class that the text modules have never seen."""

    source: Recipe
    others: tuple[Recipe, ...]
    amounts: tuple[float, ...] = (0.5,)

    @property
    def type(self) -> Any:
        return self.source.type

    def rows(self, start: int, stop: int) -> Any:
        return self.source.rows(start, stop)


def test_new_recipe_classes_need_no_change_here() -> None:
    leaf = Random(tensor(f32, (2,)))
    b = GraphBuilder()
    b.output(w=b.weight(WeightSymbol("w", Sprinkle(leaf, (leaf, leaf), (1.0, 2.0)))))
    text = str(b.module())
    line = "sprinkle(random(f32[2]), [random(f32[2]), random(f32[2])], amounts=[1.0, 2.0])"
    assert line in text
    assert str(parse_module(text)) == text
    assert str(parse_module(text.replace("[1.0, 2.0]", "[1, 2]"))) == text


def test_comments() -> None:
    text = "// RUN: something\n" + text_of("  // CHECK: neg\n  %0 = prim.neg(%x) # here\n  return y=%0")
    assert len(parse_module(text).graph.find(prim.Neg)) == 1


def test_the_collector_is_restored() -> None:
    import gc

    assert gc.isenabled()
    with pytest.raises(ParseError):
        parse_module("irlab 2")
    assert gc.isenabled()


# Refusals: what is wrong, where, what to do

TABLE = "@w : f32[3] = random()"

REFUSED = {
    "empty": ("", 1, 1, "IR text begins with the line 'irlab 1'"),
    "version": ("irlab 2\n", 1, 7, "reads version 1"),
    "undefined": (text_of("%0 = prim.neg(%y)"), 5, 15, "%y is not defined"),
    "used too early": (text_of("%0 = prim.neg(%1)\n%1 = prim.neg(%x)"), 5, 15, "define it above"),
    "similar": (text_of("%hidden = prim.neg(%x)\n%1 = prim.neg(%hiden)"), 6, 15, "did you mean '%hidden'"),
    "defined twice": (text_of("%0 = prim.neg(%x)\n%0 = prim.neg(%x)"), 6, 1, "%0 is defined twice"),
    "input twice": (text_of("return", "%x: f32[], %x: f32[]"), 4, 18, "defined twice"),
    "result twice": (text_of("%a, %a = prim.topk(%x) {k=1}"), 5, 5, "defined twice"),
    "unknown op": (text_of("%0 = prim.rehsape(%x)"), 5, 6, "did you mean 'prim.reshape'"),
    "unknown ATen": (text_of("%0 = aten.foo(%x)"), 5, 6, "call @aten.NAME"),
    "the weight op": (text_of("%0 = prim.weight()"), 5, 6, "unknown op"),
    "type": (text_of("%0 = prim.neg(%x) : f32[2, 4]"), 5, 6, "stated type is f32[2, 4], but it gives f32[2, 3]"),
    "two types": (text_of("%0 = prim.neg(%x) : f32[2, 3], f32[2, 3]"), 5, 6, "stated type"),
    "results": (text_of("%0, %1 = prim.neg(%x)"), 5, 10, "gives 1 results, not 2"),
    "inference": (text_of("%0 = prim.matmul(%x, %x)"), 5, 6, "inner sizes 3 and 2 differ"),
    "missing weight": (text_of("%0 = prim.neg(@v)", table=TABLE), 5, 15, "@v is not in the weight table"),
    "weight twice": (text_of("return", table=f"{TABLE}\n{TABLE}"), 4, 1, "declared twice"),
    "weight type": (text_of("return", table="@w : f32[2] = random(f32[3])"), 3, 15, "makes a f32[3]"),
    "symbolic weight": (text_of("return", table="@w : f32[n] = literal([1])"), 3, 15, "symbolic"),
    "unknown recipe": (text_of("return", table="@w : f32[2] = rondom()"), 3, 15, "did you mean 'random'"),
    "recipe argument": (text_of("return", table="@w : f32[2] = random(sed=1)"), 3, 22, "did you mean 'seed'"),
    "recipe arity": (text_of("return", table='@w : f32[2] = file("m")'), 3, 15, "needs its argument 'name'"),
    "recipe surplus": (text_of("return", table="@w : f32[2] = random(1, 2)"), 3, 25, "too many"),
    "recipe value": (text_of("return", table='@w : f32[2] = random(seed="a")'), 3, 22, "must be an integer"),
    "attribute": (text_of("%0 = prim.sum(%x) {axis=[0]}"), 5, 20, "did you mean 'axes'"),
    "attribute twice": (text_of("%0 = prim.sum(%x) {axes=[0], axes=[1]}"), 5, 30, "twice"),
    "attribute value": (text_of("%0 = prim.sum(%x) {axes=0}"), 5, 20, "axes of prim.sum must be a list"),
    "attribute item": (text_of("%0 = prim.sum(%x) {axes=[0.5]}"), 5, 20, "each item an integer"),
    "no attribute": (text_of("%0 = prim.sum(%x)"), 5, 6, "the attribute 'axes' is missing"),
    "no type": (text_of("%0 = prim.cast(%x)"), 5, 6, "or state the result type"),
    "axis": (text_of("%0 = prim.sum(%x) {axes=[5]}"), 5, 6, "axis 5 is outside rank 2"),
    "operand missing": (text_of("%0 = prim.add(%x)"), 5, 6, "operand 'y' is missing"),
    "operand none": (text_of("%0 = prim.add(none, %x)"), 5, 6, "operand 'x' is missing"),
    "operand surplus": (text_of("%0 = prim.neg(%x, %x)"), 5, 6, "too many"),
    "operand": (text_of("%0 = prim.neg(x)"), 5, 15, "expected an operand, found 'x'"),
    "none in the list": (text_of("%0 = prim.concat(%x, none) {axis=0}"), 5, 6, "may be none"),
    "nothing to concat": (text_of("%0 = prim.concat() {axis=0}"), 5, 6, "prim.concat"),
    "literal": (text_of('%0 = prim.add(%x, f32("a"))'), 5, 19, "f32(...) holds a number"),
    "string": (text_of('%0 = prim.neg(%x) : f32[2, 3]  loc("a)'), 5, 36, "does not end"),
    "escape": (text_of('%0 = prim.neg(%x) : f32[2, 3]  loc("\\q")'), 5, 36, "bad string"),
    "location": (text_of('%0 = prim.neg(%x)  loc("a", line="b")'), 5, 29, "no place for 'line'"),
    "dtype": (text_of("return", "%x: f23[2]"), 4, 11, "did you mean 'f32'"),
    "shape": (text_of("return", "%x: f32"), 4, 14, "rank 0 is f32[]"),
    "negative": (text_of("return", "%x: f32[-2]"), 4, 11, "negative"),
    "division": (text_of("return", "%x: f32[n // 0]"), 4, 15, "divided by zero"),
    "encoding": (text_of("return", "%x: q<int4>[32]"), 4, 11, "not an encoding: it needs"),
    "family": (text_of("return", "%x: zip<1>[32]"), 4, 11, "not an encoding"),
    "no return": (text_of("%0 = prim.neg(%x)"), 6, 1, "returns nothing"),
    "after return": (text_of("return y=%x\n%0 = prim.neg(%x)"), 6, 1, "last statement"),
    "output twice": (text_of("return y=%x, y=%x"), 5, 14, "returned twice"),
    "output none": (text_of("return y=none"), 5, 8, "is none"),
    "after the graph": (text_of("return") + "graph() {}", 7, 1, "a file holds one graph"),
    "unclosed": ("irlab 1\ngraph() {\n", 3, 1, "expected an op, found the end"),
    "metadata twice": ('irlab 1\nmodule "m" {a=1, a=2}\n', 2, 18, "stands twice"),
    "key": ('irlab 1\nmodule "m" {a={[1]: 2}}\n', 2, 16, "a key is"),
    "no region": (text_of("%0 = ctl.if(bool(true), %x)"), 6, 1, "then(inputs)"),
    "region reads outside": (
        text_of("%0 = ctl.if(bool(true), %x)\nthen(%a: f32[2, 3]) {\nreturn y=%x\n}"),
        *(7, 10, "%x is not defined"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    text, line, column, message = REFUSED[case]
    with pytest.raises(ParseError) as caught:
        parse_module(text, source="bad.ir")
    error = caught.value
    assert message in str(error)
    assert str(error).startswith(f"bad.ir:{line}:{column}: ")
    assert (error.line, error.column) == (line, column)
    assert "\n" not in str(error)
    assert error.exit_status == 1


def test_a_known_line_is_refused_like_a_new_one() -> None:
    good = "%0 = prim.add(%x, %x) : f32[2, 3]\n"
    for bad, message in (
        ("%1 = prim.add(%x, %y) : f32[2, 3]", "%y is not defined"),
        ("%0 = prim.add(%x, %x) : f32[2, 3]", "defined twice"),
        ("%1 = prim.add(%x, none) : f32[2, 3]", "missing"),
        ("%1 = prim.add(%x) : f32[2, 3]", "missing"),
        ("%1, %2 = prim.add(%x, %x) : f32[2, 3]", "gives 1 results"),
        ("%1 = prim.add(%x, %z) : f32[2, 3]", "stated type"),
    ):
        with pytest.raises(ParseError, match=message):
            parse_module(text_of(good + bad, "%x: f32[2, 3], %z: f32[4, 2, 3]"))


N = 20_000

HOSTILE = {
    "nested lists": text_of("%0 = prim.sum(%x) {axes=" + "[" * N),
    "nested dicts": "irlab 1\nmodule " + '"m" {a=' + "{1: " * N,
    "nested sizes": text_of("return", "%x: f32[" + "(" * N),
    "nested minima": text_of("return", "%x: f32[" + "min(1, " * N),
    "nested recipes": text_of("return", table="@w : f32[2] = " + "cast(" * N),
    "nested regions": text_of("%0 = ctl.if(bool(true))\nthen() {\n" * N),
    "a huge number": text_of(f"%0 = prim.sum(%x) {{axes=[{'9' * N}]}}"),
    "a huge size": text_of("return", f"%x: f32[{2**63}]"),
    "a huge literal": text_of(f"%0 = prim.add(%x, f32({'9' * 39}9e{'9' * N}))"),
    "a huge integer as a float": text_of(f"%0 = nn.rms_norm(%x) {{eps={'9' * N}}}"),
    "too many elements": text_of("return", f"%x: f32[{2**40}, {2**40}]"),
    "a high rank": text_of("return", "%x: f32[" + "1, " * N + "1]"),
    "a power": text_of("return", "%x: f32[" + "n*" * N + "n]"),
    "an exploding product": text_of("return", "%x: f32[" + "*".join(f"(a{i} + b{i})" for i in range(60)) + "]"),
    "an exploding shape": text_of(
        f"%0 = prim.reshape(%x) {{shape=[{', '.join(f'a{i} + b{i}' for i in range(60))}]}}", "%x: f32[n]"
    ),
    "doubling": text_of(
        "\n".join(f"%{i + 1} = prim.concat(%{i}, %{i}) {{axis=0}}" for i in range(N))
        .replace("%0,", "%x,")
        .replace("%0)", "%x)"),
    ),
    "halving": text_of(
        "%a0 = prim.neg(%x)\n"
        + "\n".join(
            f"%a{i + 1} = prim.max_pool(%a{i}) {{kernel=[3], stride=[2], padding=[0], dilation=[1]}}"
            for i in range(2000)
        ),
        "%x: f32[1, 1, n]",
    ),
    "spaces": text_of("%0 = prim.neg(%x)" + " " * 1_000_000 + ":"),
    "an endless string": text_of('return "' + "a" * 1_000_000),
    "backslashes": text_of('return "' + "\\" * 1_000_000),
    "an endless name": text_of("%0 = " + "a" * 1_000_000 + "()"),
    "an endless value": text_of("%0 = prim.neg(%" + "a" * 1_000_000 + ")"),
    "an odd symbol": text_of("return", "%x: f32[\u00a0]"),
    "a control character": text_of("\x00"),
    "half a file": str(small_module())[:200],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_text_is_refused_at_once(case: str) -> None:
    started = time.process_time()
    with pytest.raises(ParseError) as caught:
        parse_module(HOSTILE[case])
    assert time.process_time() - started < 5
    assert len(str(caught.value)) < 1000


@given(modules(max_ops=8), st.data())
def test_mutated_text_raises_nothing_but_irlab_errors(module: Module, data: st.DataObject) -> None:
    text = str(module)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = min(len(text), start + data.draw(st.integers(0, 12)))
        pieces = [
            "",
            " ",
            "\n",
            '"',
            "%",
            "@",
            "(",
            "]",
            "{",
            "}",
            "-",
            "9" * 50,
            "none",
            "f32",
            "inf",
            "=",
            text[:start],
        ]
        insert = data.draw(st.one_of(st.sampled_from(pieces), st.text(max_size=4)))
        text = text[:start] + insert + text[stop:]
    try:
        again = parse_module(text)
    except IrlabError:
        return
    verify(again)
    assert str(parse_module(str(again))) == str(again)


@given(st.text())
def test_any_text_raises_nothing_but_irlab_errors(text: str) -> None:
    for start in ("", "irlab 1\n", "irlab 1\ngraph(%x: f32[2]) {\n%0 = "):
        with pytest.raises(IrlabError):
            parse_module(start + text)


def test_objects_that_text_cannot_express_are_named() -> None:
    module = small_module()
    module.metadata["model"] = object()
    with pytest.raises(IRError, match="object"):
        str(module)
