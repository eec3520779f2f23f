"""How is an encoded weight spelled out in primitives, for runtimes that have no such encoding but can look numbers up?

    @w : codebook<4, rows=16>[64, 64]   ->   @w.codes : u8[64, 32], @w.table : f16[4, 16], and a prim.gather

What is stored stays small; what is multiplied with is what the encoding stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from .encodings import CodebookEncoding, HashedEncoding, bit_stream
from .encodings.hashed import PRIME
from .ir import Graph, Value
from .ops import prim
from .types import DType, TensorType, f16, i32, i64, tensor, u8
from .weight_uses import replace_weights
from .weights import Cast, Decode, Recipe, WeightSymbol, static_shape
from .weights.recipe import AnyArray

SHARED: Final = (CodebookEncoding, HashedEncoding)
"""The encodings in which weights share numbers."""


@dataclass(frozen=True)
class CodeRows(Recipe):
    """The codes of `source`, a matrix of codebooks: u8[rows, columns], or two of 4 bits a byte, the even one low."""

    source: Recipe

    @property
    def pairs(self) -> bool:
        """Whether two codes share a byte."""
        encoding, (_, columns) = self.source.type.encoding, static_shape(self.source.type)
        return isinstance(encoding, CodebookEncoding) and encoding.bits <= 4 and columns % 2 == 0

    @property
    def type(self) -> TensorType:
        rows, columns = static_shape(self.source.type)
        return tensor(u8, (rows, columns // 2 if self.pairs else columns))

    def rows(self, start: int, stop: int) -> AnyArray:
        codes = self.source.codes(start, stop)["codes"].astype(np.uint8)
        return bit_stream.pack(codes, 4) if self.pairs else codes


@dataclass(frozen=True)
class Tables(Recipe):
    """The tables of `source`, a matrix of codebooks: f16[tables, entries]."""

    source: Recipe

    @property
    def encoding(self) -> CodebookEncoding:
        found = self.source.type.encoding
        assert isinstance(found, CodebookEncoding)
        return found

    @property
    def type(self) -> TensorType:
        rows, _ = static_shape(self.source.type)
        return tensor(f16, (rows // self.encoding.rows, self.encoding.entries))

    def rows(self, start: int, stop: int) -> AnyArray:
        shared = self.encoding.rows
        return self.source.codes(start * shared, stop * shared)["table"][::shared]


@dataclass(frozen=True)
class HashPart(Recipe):
    """A part of the codes of `source`, a hashed matrix: "table" or "row"."""

    source: Recipe
    part: str

    @property
    def type(self) -> TensorType:
        encoding = self.source.type.encoding
        assert isinstance(encoding, HashedEncoding)
        return encoding.packed_types(static_shape(self.source.type))[self.part]

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.source.codes(start, stop)[self.part]


def is_expandable(type: TensorType) -> bool:
    """Whether weights of this type can be spelled out."""
    return isinstance(type.encoding, SHARED) and type.rank == 2


def expanded(symbol: WeightSymbol, dtype: DType) -> Value:
    """The matrix that `symbol`, an expandable weight, stands for, in `dtype`."""
    if isinstance(symbol.type.encoding, HashedEncoding):
        return _hashed(symbol, symbol.type.encoding, dtype)
    codes = CodeRows(symbol.recipe)
    tables = Tables(symbol.recipe)
    rows, columns = static_shape(symbol.type)
    index = prim.cast(prim.weight(WeightSymbol(f"{symbol.name}.codes", codes)), i32)
    if codes.pairs:
        sixteen = prim.constant(16, i32)
        halves = (prim.mod(index, sixteen), prim.div(index, sixteen))
        index = prim.concat(tuple(prim.reshape(half, (rows, columns // 2, 1)) for half in halves), -1)
    count, entries = static_shape(tables.type)
    first = prim.mul(prim.reshape(prim.iota(count, i32), (count, 1)), prim.constant(entries, i32))
    index = prim.add(prim.reshape(index, (count, rows // count * columns)), first)
    flat = prim.reshape(prim.weight(WeightSymbol(f"{symbol.name}.table", tables)), (count * entries,))
    numbers = prim.reshape(prim.gather(flat, index, 0), (rows, columns))
    return numbers if dtype is f16 else prim.cast(numbers, dtype)


def _hashed(symbol: WeightSymbol, encoding: HashedEncoding, dtype: DType) -> Value:
    """The hash is computed in the graph: see HashedEncoding."""
    rows, columns = static_shape(symbol.type)
    size = columns // encoding.compression
    table, row = (prim.weight(WeightSymbol(f"{symbol.name}.{p}", HashPart(symbol.recipe, p))) for p in ("table", "row"))

    def number(value: int) -> Value:
        return prim.constant(value, i64)

    a, b, c, d = encoding.factors
    column = prim.reshape(prim.iota(columns, i64), (1, columns))
    key = prim.mod(prim.add(prim.mul(prim.cast(row, i64), number(columns)), column), number(PRIME))
    place = prim.mod(prim.mod(prim.add(prim.mul(key, number(a)), number(b)), number(PRIME)), number(size))
    odd = prim.mod(prim.mod(prim.add(prim.mul(key, number(c)), number(d)), number(PRIME)), number(2))
    first = prim.mul(prim.reshape(prim.iota(rows, i64), (rows, 1)), number(size))
    numbers = prim.cast(prim.gather(prim.reshape(table, (rows * size,)), prim.add(place, first), 0), dtype)
    sign = prim.sub(prim.constant(1.0, dtype), prim.mul(prim.cast(odd, dtype), prim.constant(2.0, dtype)))
    return prim.mul(numbers, sign)


def decode_shared(graph: Graph, dtype: DType) -> str:
    """Let weights that share numbers be plain ones of `dtype`, for a target that can look none up; returns what to say
    of it, if anything."""
    found = {name: symbol for name, symbol in graph.weights().items() if isinstance(symbol.type.encoding, SHARED)}
    made = {name: WeightSymbol(name, Cast(Decode(symbol.recipe), dtype)) for name, symbol in found.items()}
    replace_weights(graph, made)
    return f"{len(found)} weights that share numbers are stored expanded: no smaller" if found else ""
