"""The steps by which a random graph grows: each picks operands among the values made so far and builds one op.

A step whose operands do not fit raises IrlabError, and the graph stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

from hypothesis import strategies as st

from ... import dims
from ...encodings import IntegerEncoding
from ...errors import IrlabError
from ...ir import Graph, Loc, Value, Weight
from ...ops import nn, prim
from ...ops.call import Call
from ...ops.control import if_
from ...types import DType, TensorType, bool_, f32, i64, tensor
from ...weights import Encode, Random, WeightSymbol
from .values import FLOATS, Draw, attribute_values, sizes, types

T = TypeVar("T")

ROW_ENCODINGS: Final = (IntegerEncoding(8, group=0), IntegerEncoding(4, symmetric=False, group=0))
"""Encodings that fit a matrix of any width."""


@dataclass
class Growth:
    """A graph under construction: what may be read, and what may be made."""

    draw: Draw
    graph: Graph
    values: list[Value]
    symbolic: bool
    floats: tuple[DType, ...] = FLOATS
    weights: dict[str, Value] = field(default_factory=dict)

    def pick(self, fits: Callable[[Value], bool] = lambda value: True) -> Value:
        """A value made so far for which `fits` holds; raises IrlabError if there is none."""
        found = [value for value in self.values if fits(value)]
        if not found:
            raise IrlabError("no value fits")
        return self.one_of(found)

    def one_of(self, options: Sequence[T]) -> T:
        chosen: T = self.draw(st.sampled_from(options))
        return chosen

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
        return self.symbol(WeightSymbol(f"w{seed}.{type}", Random(type, seed)))

    def matrix(self, type: TensorType) -> Value:
        """A weight matrix of this type, sometimes stored encoded."""
        encoding = self.one_of((None, None, None, *ROW_ENCODINGS))
        if encoding is None:
            return self.weight(type)
        recipe = Encode(Random(tensor(f32, type.shape), 0), encoding)
        return self.symbol(WeightSymbol(f"encoded.{recipe.type}", recipe))

    def symbol(self, symbol: WeightSymbol) -> Value:
        if symbol.name not in self.weights:
            self.weights[symbol.name] = self.graph.add(Weight(symbol)).result
        return self.weights[symbol.name]


Step: TypeAlias = Callable[[Growth], Value]


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


def width(x: Value) -> int:
    """The size of the last axis; raises IrlabError where it is symbolic."""
    last = x.type.shape[-1]
    if isinstance(last, dims.Dim):
        raise IrlabError("a weight has no symbolic sizes")
    return last


# Primitives


def _binary(g: Growth) -> Value:
    build = g.one_of((prim.add, prim.sub, prim.mul, prim.maximum, prim.minimum))
    x = g.pick(lambda value: value.type.dtype is not bool_ and value.type.encoding is None)
    same = [value for value in g.values if value.type is x.type]
    y = g.one_of([*same, prim.constant(g.draw(st.integers(0, 3)), x.type.dtype)])
    return build(x, y) if g.draw(st.booleans()) else build(y, x)


def _unary(g: Growth) -> Value:
    return g.one_of((prim.neg, prim.abs, prim.tanh, prim.sigmoid, prim.relu))(g.pick_float())


def _exponential(g: Growth) -> Value:
    return prim.exp(g.pick_float())


def _constant(g: Growth) -> Value:
    dtype = g.one_of((*g.floats, i64, bool_))
    number = g.draw(st.floats(width=16) if dtype.is_float else st.integers(0, 1))
    return prim.constant(number, dtype, tuple(g.draw(st.lists(sizes(g.symbolic), max_size=2))))


def _where(g: Growth) -> Value:
    x = g.pick(lambda value: value.type.dtype is not bool_ and value.type.encoding is None)
    condition = g.one_of((prim.lt, prim.eq, prim.ge))(x, prim.constant(0, x.type.dtype))
    return prim.where(condition, x, prim.constant(1, x.type.dtype))


def _cast(g: Growth) -> Value:
    return prim.cast(g.pick(), g.one_of((*g.floats, i64)))


def _cast_to_float(g: Growth) -> Value:
    return prim.cast(g.pick(), g.one_of(g.floats))


def _reshape(g: Growth) -> Value:
    x = g.pick(lambda value: value.type.rank >= 1)
    shape = x.type.shape
    return prim.reshape(x, g.one_of([(x.type.size,), (*shape, 1), (1, *shape), shape[::-1]]))


def _transpose(g: Growth) -> Value:
    x = g.pick()
    return prim.transpose(x, tuple(g.draw(st.permutations(range(x.type.rank)))))


def _expand(g: Growth) -> Value:
    x = g.pick()
    return prim.expand(x, (g.draw(st.integers(1, 3)), *x.type.shape))


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
    return g.one_of(prim.split(x, (1, size - 1), axis))


def _pad(g: Growth) -> Value:
    x = g.pick_float(1)
    rank = x.type.rank
    return prim.pad(x, (g.draw(st.integers(0, 2)),) * rank, (g.draw(st.integers(0, 1)),) * rank, 0.5)


def _reduce(g: Growth) -> Value:
    x = g.pick_float(1)
    build = g.one_of((prim.sum, prim.mean, prim.max))
    return build(x, (g.axis(x),), g.draw(st.booleans()))


def _top(g: Growth) -> Value:
    x = g.pick_float(1)
    return g.one_of(prim.topk(x, 1, g.axis(x)))


def _matmul(g: Growth) -> Value:
    x = g.pick_float(2)
    rank = x.type.rank
    return prim.matmul(x, prim.transpose(x, (*range(rank - 2), rank - 1, rank - 2)))


def _ids(g: Growth) -> Value:
    size = g.draw(sizes(g.symbolic))
    return prim.iota(size, i64, step=g.draw(st.integers(0, 1)))


# nn ops


def _activation(g: Growth) -> Value:
    return g.one_of((nn.silu, nn.gelu, lambda x: nn.gelu(x, "tanh"), nn.softmax))(g.pick_float(1))


def _linear(g: Growth) -> Value:
    x = g.pick_float(1)
    out = g.draw(st.integers(1, 6))
    bias = g.weight(tensor(x.type.dtype, (out,))) if g.draw(st.booleans()) else None
    return nn.linear(x, g.matrix(tensor(x.type.dtype, (out, width(x)))), bias)


def _norm(g: Growth) -> Value:
    x = g.pick_float(1)
    w = g.weight(tensor(x.type.dtype, (width(x),)))
    eps = g.one_of((1e-5, 1e-6))
    if g.draw(st.booleans()):
        return nn.layer_norm(x, None, w, eps)
    return nn.rms_norm(x, g.one_of((None, w)), eps)


def _residual_norm(g: Growth) -> Value:
    x = g.pick_float(1)
    y = g.pick(lambda value: value.type is x.type)
    w = g.weight(tensor(x.type.dtype, (width(x),)))
    return g.one_of(nn.add_rms_norm(x, y, w))


def _embedding(g: Growth) -> Value:
    """A table of eight rows, which ids of any size may be too large for: the interpreter then refuses the sizes."""
    return nn.embedding(_ids(g), g.weight(tensor(f32, (8, g.draw(st.integers(1, 4))))))


def _gated_mlp(g: Growth) -> Value:
    x = g.pick_float(1)
    inner = g.draw(st.integers(1, 4))
    up, down = tensor(x.type.dtype, (inner, width(x))), tensor(x.type.dtype, (width(x), inner))
    kind = g.one_of(nn.ACTIVATIONS)
    return nn.gated_mlp(x, g.matrix(up), g.matrix(up), g.matrix(down), activation=kind)


def _stacks(g: Growth, x: Value) -> tuple[Value, Value, Value]:
    """The weights of three experts for x: gate, up, down."""
    inner = g.draw(st.integers(1, 3))
    up, down = tensor(x.type.dtype, (3, inner, width(x))), tensor(x.type.dtype, (3, width(x), inner))
    return g.matrix(up), g.matrix(up), g.matrix(down)


def _experts(g: Growth) -> Value:
    x = g.pick_float(1)
    shape = (*x.type.shape[:-1], g.draw(st.integers(1, 2)))
    chosen = prim.constant(g.draw(st.integers(0, 2)), i64, shape)
    scores = prim.constant(g.draw(st.sampled_from((0.5, 1.0))), x.type.dtype, shape)
    return nn.experts(x, chosen, scores, *_stacks(g, x), g.one_of(nn.ACTIVATIONS))


def _moe(g: Growth) -> Value:
    x = g.pick_float(1)
    logits = nn.linear(x, g.matrix(tensor(x.type.dtype, (3, width(x)))))
    return nn.moe(x, logits, *_stacks(g, x), g.draw(st.integers(1, 3)), g.one_of(nn.ACTIVATIONS), g.draw(st.booleans()))


def _four(g: Growth) -> Value:
    """A value as [batch, heads, seq, features]."""
    x = g.pick_float(3)
    if x.type.rank > 4:
        raise IrlabError("too many axes")
    return prim.reshape(x, (*x.type.shape[:-1], 1, x.type.shape[-1])) if x.type.rank == 3 else x


def _rope(g: Growth) -> Value:
    x = _four(g)
    pairs = width(x) // 2
    if not pairs:
        raise IrlabError("one feature cannot turn")
    frequencies = g.weight(tensor(f32, (g.draw(st.integers(1, pairs)),)))
    return nn.rope(x, prim.iota(x.type.shape[2], i64), frequencies, g.draw(st.booleans()))


def _attention(g: Growth) -> Value:
    q = _four(g)
    sinks = g.weight(tensor(q.type.dtype, (1,))) if q.type.shape[1] == 1 else None
    return nn.attention(q, q, q, None, sinks, causal=g.draw(st.booleans()), scale=g.draw(st.floats(0.125, 2.0)))


def _kv_update(g: Growth) -> Value:
    cache = _four(g)
    return nn.kv_update(cache, g.pick(lambda value: value.type is cache.type))


def _spelled_out(g: Growth) -> Value:
    """An nn op written out in primitives, as a frontend would find it."""
    op = g.one_of(NN)(g).op
    assert isinstance(op, nn.NNOp)
    made = op.decompose()
    return g.one_of(made) if isinstance(made, tuple) else made


# Regions and calls


def branch(g: Growth) -> Value:
    """A ctl.if with two random regions."""
    x = g.pick(lambda value: value.type.encoding is None)
    condition = prim.constant(g.draw(st.booleans()), bool_)
    regions = [_region(g, x.type) for _ in range(2)]
    return g.one_of(if_(condition, (x,), *regions))


def _region(g: Growth, type: TensorType) -> Graph:
    region = Graph()
    inner = Growth(g.draw, region, [region.input("x", type)], g.symbolic, g.floats)
    grow(inner, SMOOTH, g.draw(st.integers(0, 3)))
    region.output(y=g.one_of([value for value in inner.values if value.type is type]))
    return region


def call(g: Growth) -> Value:
    """An opaque call with any arguments and results."""
    results = tuple(g.draw(st.lists(types(g.symbolic), min_size=1, max_size=2)))
    arguments = tuple(g.draw(st.lists(attribute_values(), max_size=3)))
    operands = tuple(g.draw(st.lists(st.sampled_from(g.values), max_size=2)))
    return Call(operands, g.one_of(("aten.nonzero.default", "odd name")), arguments, results).result


NN: Final[tuple[Step, ...]] = (
    *(_activation, _linear, _norm, _residual_norm, _embedding, _gated_mlp, _experts, _rope, _attention, _kv_update),
)

SMOOTH: Final[tuple[Step, ...]] = (
    *(_binary, _unary, _constant, _cast_to_float, _reshape, _transpose, _expand, _slice, _concat, _split, _pad),
    *(_reduce, _matmul, _ids, *NN, _spelled_out),
)
"""Steps by which a small change of the inputs makes a small change of the result, so that rounding stays rounding."""

JUMPS: Final[tuple[Step, ...]] = (_where, _cast, _top, _exponential, _moe)
"""Steps that can turn rounding into any difference: comparisons, casts to integers, choices, and exp, which
overflows."""
