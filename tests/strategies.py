"""Hypothesis strategies that build random valid IR: sizes, types, attribute values, recipes, whole modules.

    @given(modules())
    def test_something(module: Module) -> None: ...

A module grows op by op: each step picks operands from the values made so far, and a step whose operands do not fit is
skipped. `modules(symbolic=False, calls=False)` gives modules that the interpreter can evaluate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from hypothesis import strategies as st

from irlab import dims, nn, prim
from irlab.encodings import IntegerEncoding
from irlab.errors import IrlabError
from irlab.ir import Graph, Loc, Module, Value, Weight
from irlab.ops.call import Call
from irlab.ops.control import if_
from irlab.types import DTYPES, DType, TensorType, bf16, bool_, f16, f32, i64, tensor
from irlab.weights import Cast, Concat, File, Literal, Random, Recipe, Reshape, Slice, Transpose, WeightSymbol

Draw: TypeAlias = Callable[[Any], Any]

FLOATS = (f32, f16, bf16)
SYMBOLS = ("batch", "seq", "past")
ENCODINGS = (IntegerEncoding(4), IntegerEncoding(8), IntegerEncoding(4, symmetric=False, scale=bf16))

words = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
odd_names = st.one_of(
    words, st.text(max_size=12), st.sampled_from(["0", "a.b-c", 'say "x"', "%1", "a b", "none", "//"])
)
"""Names as a hostile frontend might give them."""

numbers = st.one_of(st.floats(), st.integers(-(2**63), 2**64), st.booleans())


def sizes(symbolic: bool = True, names: tuple[str, ...] = SYMBOLS) -> st.SearchStrategy[dims.Size]:
    """Small positive integers and, if `symbolic`, expressions over `names`."""
    known = st.integers(1, 6)
    if not symbolic:
        return known
    leaves: st.SearchStrategy[dims.Size] = st.one_of(known, st.sampled_from(names).map(dims.symbol))

    def grow(inner: st.SearchStrategy[dims.Size]) -> st.SearchStrategy[dims.Size]:
        pairs = st.tuples(inner, inner)
        return st.one_of(
            pairs.map(lambda p: p[0] + p[1]),
            pairs.map(lambda p: p[0] * p[1]),
            pairs.map(lambda p: dims.maximum(*p)),
            pairs.map(lambda p: dims.minimum(*p)),
            st.tuples(inner, known).map(lambda p: dims.floordiv(*p)),
            st.tuples(inner, known).map(lambda p: dims.mod(*p)),
        )

    return st.recursive(leaves, grow, max_leaves=4)


def types(symbolic: bool = True, dtypes: tuple[DType, ...] = tuple(DTYPES.values())) -> st.SearchStrategy[TensorType]:
    """Tensor types of rank 0 to 4."""
    shapes = st.lists(sizes(symbolic), max_size=4).map(tuple)
    return st.builds(tensor, st.sampled_from(dtypes), shapes)


def attribute_values() -> st.SearchStrategy[Any]:
    """Anything that an attribute may hold."""
    reserved = ("f32", "none", "inf", "nan", "min", "true", "batch", "é")
    leaves = st.one_of(
        st.none(),
        numbers,
        st.text(max_size=12),
        st.sampled_from(list(DTYPES.values())),
        types(),
        sizes(names=reserved),
        sizes(names=reserved).map(lambda size: -size),
        st.sampled_from(ENCODINGS),
    )
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4).map(tuple), st.dictionaries(st.text(max_size=6), inner, max_size=3)
        ),
        max_leaves=8,
    )


@st.composite
def recipes(draw: Draw, shape: tuple[int, ...] = (4, 32), dtype: DType = f32, depth: int = 3) -> Recipe:
    """A recipe for plain numbers of this type."""
    of = tensor(dtype, shape)
    kind = draw(st.sampled_from(("file", "random", "literal", "cast", "slice", "concat", "transpose", "reshape")))
    if depth == 0 or kind == "file":
        path = draw(st.sampled_from(("model.safetensors", "sub/a b.safetensors")))
        return File(Path(path), draw(odd_names), of)
    if kind == "random":
        return Random(of, draw(st.integers(0, 9)))
    if kind == "literal" and len(shape) == 1:
        count = shape[0]
        return Literal(of, tuple(draw(st.lists(st.floats(width=16), min_size=count, max_size=count))))
    inner = depth - 1
    if kind == "cast":
        return Cast(draw(recipes(shape, draw(st.sampled_from(FLOATS)), inner)), dtype)
    if kind == "slice":
        longer = (shape[0] + 3, *shape[1:])
        return Slice(draw(recipes(longer, dtype, inner)), 0, 2, 2 + shape[0])
    if kind == "concat" and shape[0] >= 2:
        first = draw(st.integers(1, shape[0] - 1))
        pieces = [draw(recipes((n, *shape[1:]), dtype, inner)) for n in (first, shape[0] - first)]
        return Concat(tuple(pieces))
    if kind == "transpose":
        return Transpose(draw(recipes(shape[::-1], dtype, inner)), tuple(range(len(shape)))[::-1])
    return Reshape(draw(recipes((1, *shape), dtype, inner)), shape)


weight_symbols = st.builds(WeightSymbol, odd_names, recipes())
"""Weights f32[4, 32] of any recipe."""


@dataclass
class Growth:
    """A graph under construction: what may be read, and what may be made."""

    draw: Draw
    graph: Graph
    values: list[Value]
    symbolic: bool
    weights: dict[str, Value] = field(default_factory=dict)

    def pick(self, fits: Callable[[Value], bool] = lambda value: True) -> Value:
        """A value made so far for which `fits` holds; raises IrlabError if there is none."""
        found = [value for value in self.values if fits(value)]
        if not found:
            raise IrlabError("no value fits")
        value: Value = self.draw(st.sampled_from(found))
        return value

    def pick_float(self, least_rank: int = 0) -> Value:
        return self.pick(lambda value: value.type.dtype in FLOATS and value.type.rank >= least_rank)

    def axis(self, value: Value) -> int:
        if not value.type.rank:
            raise IrlabError("rank 0 has no axes")
        axis: int = self.draw(st.integers(-value.type.rank, -1))
        return axis

    def weight(self, type: TensorType) -> Value:
        """A weight of this type, often one that is in use already (a tied weight)."""
        seed = self.draw(st.integers(0, 2))
        symbol = WeightSymbol(f"w{seed}.{type}", Random(type, seed))
        if symbol.name not in self.weights:
            self.weights[symbol.name] = self.graph.add(Weight(symbol)).result
        return self.weights[symbol.name]


def _binary(g: Growth) -> Value:
    build = g.draw(st.sampled_from((prim.add, prim.sub, prim.mul, prim.maximum, prim.minimum)))
    x = g.pick(lambda value: value.type.dtype is not bool_ and value.type.encoding is None)
    same = [value for value in g.values if value.type is x.type]
    y = g.draw(st.sampled_from([*same, prim.constant(g.draw(st.integers(0, 3)), x.type.dtype)]))
    return build(x, y) if g.draw(st.booleans()) else build(y, x)


def _unary(g: Growth) -> Value:
    build = g.draw(
        st.sampled_from((prim.neg, prim.abs, prim.exp, prim.tanh, prim.sigmoid, nn.silu, nn.gelu, prim.relu))
    )
    return build(g.pick_float())


def _constant(g: Growth) -> Value:
    dtype = g.draw(st.sampled_from((*FLOATS, i64, bool_)))
    number = g.draw(st.floats(width=16) if dtype.is_float else st.integers(0, 1))
    return prim.constant(number, dtype, tuple(g.draw(st.lists(sizes(g.symbolic), max_size=2))))


def _where(g: Growth) -> Value:
    x = g.pick(lambda value: value.type.dtype is not bool_ and value.type.encoding is None)
    condition = g.draw(st.sampled_from((prim.lt, prim.eq, prim.ge)))(x, prim.constant(0, x.type.dtype))
    return prim.where(condition, x, prim.constant(1, x.type.dtype))


def _cast(g: Growth) -> Value:
    return prim.cast(g.pick(), g.draw(st.sampled_from((*FLOATS, i64))))


def _reshape(g: Growth) -> Value:
    x = g.pick(lambda value: value.type.rank >= 1)
    shape = x.type.shape
    return prim.reshape(x, g.draw(st.sampled_from([(x.type.size,), (*shape, 1), (1, *shape), shape[::-1]])))


def _transpose(g: Growth) -> Value:
    x = g.pick()
    return prim.transpose(x, tuple(g.draw(st.permutations(range(x.type.rank)))))


def _slice(g: Growth) -> Value:
    x = g.pick()
    axis = g.axis(x)
    return prim.slice(x, axis, 0, x.type.shape[axis], g.draw(st.integers(1, 2)))


def _concat(g: Growth) -> Value:
    x = g.pick()
    return prim.concat((x,) * g.draw(st.integers(1, 3)), g.axis(x))


def _split(g: Growth) -> Value:
    x = g.pick()
    axis = g.axis(x)
    size = x.type.shape[axis]
    return g.draw(st.sampled_from(prim.split(x, (1, size - 1), axis)))


def _reduce(g: Growth) -> Value:
    x = g.pick_float(1)
    build = g.draw(st.sampled_from((prim.sum, prim.mean, prim.max)))
    return build(x, (g.axis(x),), g.draw(st.booleans()))


def _top(g: Growth) -> Value:
    x = g.pick_float(1)
    return g.draw(st.sampled_from(prim.topk(x, 1, g.axis(x))))


def _matmul(g: Growth) -> Value:
    x = g.pick_float(2)
    rank = x.type.rank
    return prim.matmul(x, prim.transpose(x, (*range(rank - 2), rank - 1, rank - 2)))


def _ids(g: Growth) -> Value:
    size = g.draw(sizes(g.symbolic))
    return prim.iota(size, i64, step=g.draw(st.integers(0, 1)))


def _width(x: Value) -> int:
    width = x.type.shape[-1]
    if isinstance(width, dims.Dim):
        raise IrlabError("a weight has no symbolic sizes")
    return width


def _linear(g: Growth) -> Value:
    x = g.pick_float(1)
    out = g.draw(st.integers(1, 6))
    bias = g.weight(tensor(x.type.dtype, (out,))) if g.draw(st.booleans()) else None
    return nn.linear(x, g.weight(tensor(x.type.dtype, (out, _width(x)))), bias)


def _norm(g: Growth) -> Value:
    x = g.pick_float(1)
    w = g.weight(tensor(x.type.dtype, (_width(x),)))
    eps = g.draw(st.sampled_from((1e-5, 1e-6)))
    if g.draw(st.booleans()):
        return nn.layer_norm(x, None, w, eps)
    return nn.rms_norm(x, g.draw(st.sampled_from((None, w))), eps)


def _embedding(g: Growth) -> Value:
    return nn.embedding(_ids(g), g.weight(tensor(f32, (8, g.draw(st.integers(1, 4))))))


def _attention(g: Growth) -> Value:
    x = g.pick_float(3)
    q = prim.reshape(x, (*x.type.shape[:-1], 1, x.type.shape[-1])) if x.type.rank == 3 else x
    sinks = g.weight(tensor(q.type.dtype, (1,))) if q.type.shape[1] == 1 else None
    return nn.attention(q, q, q, None, sinks, causal=g.draw(st.booleans()), scale=g.draw(st.floats(0.125, 2.0)))


def _if(g: Growth) -> Value:
    x = g.pick(lambda value: value.type.encoding is None)
    condition = prim.constant(g.draw(st.booleans()), bool_)
    regions = [_region(g, x.type) for _ in range(2)]
    return g.draw(st.sampled_from(if_(condition, (x,), *regions)))


def _region(g: Growth, type: TensorType) -> Graph:
    region = Graph()
    inner = Growth(g.draw, region, [region.input("x", type)], g.symbolic)
    grow(inner, STEPS, g.draw(st.integers(0, 3)))
    region.output(y=g.draw(st.sampled_from([value for value in inner.values if value.type is type])))
    return region


def _call(g: Growth) -> Value:
    results = tuple(g.draw(st.lists(types(g.symbolic), min_size=1, max_size=2)))
    arguments = tuple(g.draw(st.lists(attribute_values(), max_size=3)))
    operands = tuple(g.draw(st.lists(st.sampled_from(g.values), max_size=2)))
    return Call(operands, g.draw(st.sampled_from(("aten.nonzero.default", "odd name"))), arguments, results).result


Step: TypeAlias = Callable[[Growth], Value]

STEPS: tuple[Step, ...] = (
    *(_binary, _unary, _constant, _where, _cast, _reshape, _transpose, _slice, _concat, _split, _reduce, _top),
    *(_matmul, _ids, _linear, _norm, _embedding, _attention),
)


def grow(growth: Growth, steps: tuple[Step, ...], count: int) -> None:
    """Try `count` steps; one that does not fit changes nothing."""
    draw = growth.draw
    for _ in range(count):
        try:
            value = draw(st.sampled_from(steps))(growth)
        except IrlabError:
            continue
        op = value.op
        if op is None or op.graph is not None:
            continue
        op.loc = draw(st.sampled_from((None, Loc.at("model.layers.0"), Loc.at('a "b"', "m.py:3", "rule"))))
        growth.graph.add(op)
        growth.values += op.results


@st.composite
def modules(
    draw: Draw,
    max_ops: int = 15,
    symbolic: bool = True,
    calls: bool = True,
    regions: bool = True,
    names: st.SearchStrategy[str] = words,
) -> Module:
    """Valid modules of up to `max_ops` steps. `names` are those of inputs, outputs and some values."""
    graph = Graph()
    input_names = draw(st.lists(names.filter(bool), min_size=1, max_size=3, unique=True))
    inputs = [graph.input(name, draw(types(symbolic, (*FLOATS, i64)))) for name in input_names]
    growth = Growth(draw, graph, inputs[:], symbolic)
    steps = (*STEPS, *([_call] if calls else []), *([_if] if regions else []))
    grow(growth, steps, draw(st.integers(0, max_ops)))
    for value in draw(st.lists(st.sampled_from(growth.values), max_size=2)):
        if value.op is not None and value.name is None:
            value.name = draw(names)
    outputs = draw(st.lists(st.sampled_from(growth.values), min_size=1, max_size=3))
    graph.set_outputs(dict(zip(draw(st.lists(names, min_size=3, max_size=3, unique=True)), outputs)))
    return Module(graph, draw(names))
