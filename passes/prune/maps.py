"""How do linear maps on the residual stream disappear in the matrices around them?

    map(x + y)  ->  map(x) + map(y)          map(linear(x, @w))  ->  linear(x, map @w)

What leads into a bottleneck moves towards what writes the stream, what leads out of it is taken in by what reads it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from irlab.ir import Op, Value, Weight
from irlab.ops import nn, prim
from irlab.pattern import Pattern, Variable, p
from irlab.rewrite import Match, Rule
from irlab.types import DType, f32
from irlab.weights import (
    Affine,
    Cast,
    Mean,
    Project,
    Recipe,
    Reshape,
    Transpose,
    WeightSymbol,
    static_shape,
)


@dataclass
class Maps:
    """The matrices that were put in, and which of them may be merged with what."""

    tied: frozenset[str]
    """The weights that are read in several places."""
    keep_tied: bool
    _exact: dict[str, Recipe] = field(default_factory=dict)
    """The maps, in f32."""
    goes_to: dict[str, str] = field(default_factory=dict)
    """The bottleneck that a map leads into."""
    _shortcuts: Counter[str] = field(default_factory=Counter)

    def weight(self, name: str, recipe: Recipe, dtype: DType, leads_to: str = "") -> Value:
        """Note a map."""
        self._exact[name] = recipe
        if leads_to:
            self.goes_to[name] = leads_to
        return prim.weight(WeightSymbol(name, in_dtype(recipe, dtype)))

    def has(self, weight: Value) -> bool:
        """Whether `weight` is a map."""
        return isinstance(weight.op, Weight) and weight.op.symbol.name in self._exact

    def leads(self, weight: Value) -> bool:
        """Whether `weight` leads into a bottleneck."""
        return isinstance(weight.op, Weight) and weight.op.symbol.name in self.goes_to

    def goes_back(self, weight: Value, bias: Value | None) -> bool:
        """Whether `weight` leads out of a bottleneck."""
        return self.has(weight) and not self.leads(weight) and (bias is None or isinstance(bias.op, Weight))

    def takes(self, weight: Value, bias: Value | None = None) -> bool | str:
        """Whether a map may go into `weight` and `bias`."""
        if not isinstance(weight.op, Weight) or (bias is not None and not isinstance(bias.op, Weight)):
            return "the matrix is computed"
        return not self.keep_tied or weight.op.symbol.name not in self.tied or "the weight is read elsewhere too"

    def then(self, first: Value, second: Value, named: Value, reader: Op) -> Value:
        """The matrix that maps by `first`, then by `second`, in place of the weight `named` that `reader` reads."""
        name = _name(named)
        if name in self.tied and reader.loc is not None and reader.loc.path:
            name = f"{reader.loc.path}.weight"
        if named is first:
            return _weight(name, Project(self.recipe(first), transposed(self.recipe(second)), 0), named.type.dtype)
        return _weight(name, Project(self.recipe(second), self.recipe(first), 1), named.type.dtype)

    def shortcut(self, into: Value) -> str:
        """A name for a matrix on the residual connection to a bottleneck."""
        base = f"{self.goes_to[_name(into)]}.shortcut"
        self._shortcuts[base] += 1
        number = self._shortcuts[base]
        return f"{base}.weight" if number == 1 else f"{base}.{number}.weight"

    def narrowed(self, table: Value, into: Value) -> Value:
        """The rows of `table`, mapped."""
        recipe = Project(_plain(table), transposed(self.recipe(into)), 1)
        return _weight(_name(table), recipe, table.type.dtype)

    def recipe(self, weight: Value) -> Recipe:
        """What a weight is, a map before it was rounded."""
        return self._exact.get(_name(weight), _plain(weight))

    def bias(
        self, matrix: Value, inner: Value | None, outer: Value | None = None, *, renew: bool = False
    ) -> Value | None:
        """The bias matrix @ inner + outer. `renew`: it takes the place of `inner`, and its name."""
        if inner is None:
            return outer
        size, dtype = static_shape(matrix.type)[0], matrix.type.dtype
        row = Reshape(in_dtype(_plain(inner), f32), (1, static_shape(inner.type)[0]))
        made: Recipe = Reshape(Project(row, transposed(self.recipe(matrix)), 1), (size,))
        name = _name(inner) if renew else f"{_name(matrix).removesuffix('.weight')}.bias"
        if outer is not None:
            made, name = Affine(Mean((made, in_dtype(_plain(outer), f32))), 2.0), _name(outer)
        return _weight(name, made, dtype)


class _MapRule(Rule):
    """A rule that knows the maps."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps


class MapOfSum(_MapRule):
    """map(x + y)  ->  map(x) + map(y)."""

    def pattern(self, x: Variable, y: Variable, m: Variable) -> Pattern:
        return p.linear(x + y, m)

    def where(self, m: Match) -> bool | str:
        return self.maps.leads(m.m) and m.x.type.shape[-1:] == m.y.type.shape[-1:]

    def rewrite(self, m: Match) -> Value:
        return prim.add(nn.linear(m.x, m.m), nn.linear(m.y, m.m))


class MapOfMultiple(_MapRule):
    """map(x * c)  ->  map(x) * c, for one number c for all features."""

    def pattern(self, x: Variable, c: Variable, m: Variable) -> Pattern:
        return p.linear(x * c, m)

    def where(self, m: Match) -> bool | str:
        return self.maps.leads(m.m) and (not m.c.type.shape or m.c.type.shape[-1] == 1)

    def rewrite(self, m: Match) -> Value:
        return prim.mul(nn.linear(m.x, m.m), m.c)


class MapOfEmbedding(_MapRule):
    """map(embedding(ids, @table))  ->  embedding(ids, @table map^T)."""

    def pattern(self, ids: Variable, table: Variable, m: Variable) -> Pattern:
        return p.linear(p.embedding(ids, table), m)

    def where(self, m: Match) -> bool | str:
        return self.maps.leads(m.m) and self.maps.takes(m.table)

    def rewrite(self, m: Match) -> Value:
        return nn.embedding(m.ids, self.maps.narrowed(m.table, m.m))


class MapOfMatrix(_MapRule):
    """map(linear(x, @w, @b))  ->  linear(x, map @w, map @b): of what writes the stream, and of two maps."""

    def pattern(self, x: Variable, w: Variable, b: Variable, m: Variable) -> Pattern:
        return p.linear(p.linear(x, w, p.optional(b)), m)

    def where(self, m: Match) -> bool | str:
        return self.maps.leads(m.m) and not self.maps.has(m.w) and self.maps.takes(m.w, m.b)

    def rewrite(self, m: Match) -> Value:
        return nn.linear(m.x, self.maps.then(m.w, m.m, m.w, m.root), self.maps.bias(m.m, m.b, renew=True))


class MatrixOfMap(_MapRule):
    """linear(map(x), @w, @b)  ->  linear(x, @w map, @b): of what reads the stream, and of two maps."""

    def pattern(self, x: Variable, m: Variable, c: Variable, w: Variable, b: Variable) -> Pattern:
        return p.linear(p.shared(p.linear(x, m, p.optional(c))), w, p.optional(b))

    def where(self, m: Match) -> bool | str:
        return self.maps.goes_back(m.m, m.c) and (self.maps.has(m.w) or self.maps.takes(m.w, m.b))

    def rewrite(self, m: Match) -> Value:
        if self.maps.leads(m.w):
            name = self.maps.shortcut(m.w)
            made = _weight(name, Project(self.maps.recipe(m.w), self.maps.recipe(m.m), 1), m.w.type.dtype)
        else:
            made = self.maps.then(m.m, m.w, m.w, m.root)
        return nn.linear(m.x, made, self.maps.bias(m.w, m.c, m.b))


class GatedMLPOfMap(_MapRule):
    """gated_mlp(map(x), @gate, @up, @down ...)  ->  gated_mlp(x, @gate map, @up map, @down ...)."""

    def pattern(self, x: Variable, m: Variable, c: Variable, gate: Variable, up: Variable, down: Variable) -> Pattern:
        biases = [p.optional(p.var(name)) for name in ("gate_bias", "up_bias", "down_bias")]
        whole = p.shared(p.linear(x, m, p.optional(c)))
        return p.gated_mlp(whole, gate, up, down, *biases, activation=p.var("activation"))

    def where(self, m: Match) -> bool | str:
        takes = self.maps.takes(m.gate, m.gate_bias) and self.maps.takes(m.up, m.up_bias)
        return self.maps.goes_back(m.m, m.c) and takes

    def rewrite(self, m: Match) -> Value:
        gate, up = (self.maps.then(m.m, w, w, m.root) for w in (m.gate, m.up))
        gate_bias, up_bias = self.maps.bias(m.gate, m.c, m.gate_bias), self.maps.bias(m.up, m.c, m.up_bias)
        return nn.gated_mlp(m.x, gate, up, m.down, gate_bias, up_bias, m.down_bias, m.activation)


class MapOfGatedMLP(_MapRule):
    """map(gated_mlp(x, @gate, @up, @down, @down_bias))  ->  gated_mlp(x, @gate, @up, map @down, map @down_bias)."""

    def pattern(self, x: Variable, gate: Variable, up: Variable, down: Variable, m: Variable) -> Pattern:
        biases = [p.optional(p.var(name)) for name in ("gate_bias", "up_bias", "down_bias")]
        return p.linear(p.gated_mlp(x, gate, up, down, *biases, activation=p.var("activation")), m)

    def where(self, m: Match) -> bool | str:
        return self.maps.leads(m.m) and self.maps.takes(m.down, m.down_bias)

    def rewrite(self, m: Match) -> Value:
        down = self.maps.then(m.down, m.m, m.down, m.root)
        down_bias = self.maps.bias(m.m, m.down_bias, renew=True)
        return nn.gated_mlp(m.x, m.gate, m.up, down, m.gate_bias, m.up_bias, down_bias, m.activation)


RULES = (
    MapOfSum,
    MapOfMultiple,
    MapOfEmbedding,
    MapOfMatrix,
    MatrixOfMap,
    GatedMLPOfMap,
    MapOfGatedMLP,
)


def _name(weight: Value) -> str:
    assert isinstance(weight.op, Weight)
    return weight.op.symbol.name


def _plain(weight: Value) -> Recipe:
    assert isinstance(weight.op, Weight)
    return weight.op.symbol.recipe


def transposed(recipe: Recipe) -> Recipe:
    """The matrix on its side."""
    return Transpose(recipe, (1, 0))


def _weight(name: str, recipe: Recipe, dtype: DType) -> Value:
    return prim.weight(WeightSymbol(name, in_dtype(recipe, dtype)))


def in_dtype(recipe: Recipe, dtype: DType) -> Recipe:
    """`recipe`, rounded if need be."""
    return recipe if recipe.type.dtype is dtype and recipe.type.encoding is None else Cast(recipe, dtype)
