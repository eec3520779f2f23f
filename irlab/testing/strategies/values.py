"""Random sizes, types, attribute values, names and weight recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from hypothesis import strategies as st

from ... import dims
from ...encodings import IntegerEncoding
from ...types import DTYPES, DType, TensorType, bf16, f16, f32, tensor
from ...weights import Cast, Concat, File, Literal, Random, Recipe, Reshape, Slice, Transpose, WeightSymbol

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
