"""Encoded weights: ONNX Runtime decodes exactly the numbers that the encoding decodes, whatever the layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_files import op_types, run_directory, write

from irlab import GraphBuilder
from irlab.backends.onnx import ONNX
from irlab.encodings import Encoding, IntegerEncoding, parse_encoding
from irlab.errors import LegalityError
from irlab.ir import Module
from irlab.ops import nn, prim
from irlab.types import bf16, f16, f32, tensor
from irlab.weights import Concat, Encode, Random, Recipe, WeightSymbol

ENCODINGS = [
    IntegerEncoding(4, True, 32, f16),
    IntegerEncoding(4, False, 32, f16),
    IntegerEncoding(4, True, 128, f32),
    IntegerEncoding(8, True, 32, f16),
    IntegerEncoding(8, False, 16, bf16),
    IntegerEncoding(8, True, 0, f16),
]


def encoded(rows: int, columns: int, encoding: Encoding, seed: int = 0) -> Recipe:
    return Encode(Random(tensor("f32", (rows, columns)), seed), encoding)


def table_and_linear(recipe: Recipe) -> Module:
    """One matrix, read as a table by ids and as the weight of a linear."""
    b = GraphBuilder()
    w = b.weight(WeightSymbol("w", recipe))
    x, ids = b.input("x", "f32", ("n", recipe.type.shape[1])), b.input("ids", "i64", ("m",))
    b.output(y=nn.linear(x, w), rows=nn.embedding(ids, w))
    return b.module()


def check_exact(recipe: Recipe, directory: Path, profile: str) -> None:
    write(table_and_linear(recipe), directory, profile=profile, accuracy_level=0)
    rows, columns = recipe.type.shape
    numbers = recipe.read()
    # Products with the identity are the numbers themselves: every other term is an exact zero.
    found = run_directory(directory, {"x": np.eye(columns, dtype=np.float32), "ids": np.arange(rows)})
    np.testing.assert_array_equal(found["rows"], numbers)
    np.testing.assert_array_equal(found["y"].T, numbers)


@pytest.mark.parametrize("profile", ["fast", "portable"])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
@pytest.mark.parametrize("rows", [24, 25])
def test_exact(encoding: Encoding, rows: int, profile: str, tmp_path: Path) -> None:
    check_exact(encoded(rows, 256, encoding), tmp_path / "out", profile)


@pytest.mark.parametrize("profile", ["fast", "portable"])
def test_joined_matrices(profile: str, tmp_path: Path) -> None:
    pieces = tuple(encoded(rows, 64, ENCODINGS[0], rows) for rows in (8, 6))
    check_exact(Concat(pieces, 0), tmp_path / "out", profile)


def test_a_matrix_of_several_chunks(tmp_path: Path) -> None:
    """Rows of 2176 numbers come in odd chunks of 1927, whose nibbles share a byte when they become columns."""
    recipe = encoded(2050, 2176, ENCODINGS[0])
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", 2176))
    b.output(y=nn.linear(x, b.weight(WeightSymbol("w", recipe))))
    write(b.module(), tmp_path / "out", profile="portable")
    probe = np.zeros((64, 2176), np.float32)
    probe[np.arange(64), np.arange(64) * 34] = 1.0
    found = run_directory(tmp_path / "out", {"x": probe})["y"]
    np.testing.assert_array_equal(found.T, recipe.read()[:, np.arange(64) * 34])


def test_codes_are_stored_once(tmp_path: Path) -> None:
    recipe = encoded(512, 256, ENCODINGS[0])
    write(table_and_linear(recipe), tmp_path / "out")
    assert op_types(tmp_path / "out") >= {"MatMulNBits", "GatherBlockQuantized"}
    codes, scales = 512 * 256 // 2, 512 * 8 * 4
    assert codes + scales <= (tmp_path / "out" / "model.onnx.data").stat().st_size < codes + scales + 8192


def test_scales_are_exact_in_half_precision(tmp_path: Path) -> None:
    b = GraphBuilder()
    recipe = encoded(16, 64, ENCODINGS[0])
    x = b.input("x", "f16", ("n", 64))
    b.output(y=nn.linear(x, b.weight(WeightSymbol("w", recipe))))
    write(b.module(), tmp_path / "out", accuracy_level=0)
    found = run_directory(tmp_path / "out", {"x": np.eye(64, dtype=np.float16)})["y"]
    np.testing.assert_array_equal(found.T, recipe.read().astype(np.float16))


FORMS = {
    "q<int2, sym, group=32, scale=f16>": ("native", "int2"),
    "q<int2, asym, group=64, scale=f16>": ("native", "int2"),
    "q<int3, asym, group=32, scale=f16>": ("emulated", "int4"),
    "q<int6, sym, group=64, scale=i8>": ("emulated", "int8"),
    "q<int4, sym, group=32, scale=i8>": ("native", "int4"),
    "q<int8, sym, group=tensor, scale=f32>": ("native", "int8"),
    "f<e2m1, group=32, scale=e8m0>": ("emulated", "int8"),
    "f<e2m1, group=16, scale=e4m3>": ("emulated", "int8"),
    "f<e2m3, group=32, scale=e8m0>": ("emulated", "int8"),
    "f<e4m3, group=0, scale=f32>": ("emulated", "decoded"),
    "table<iq4_nl, group=32, scale=f16>": ("emulated", "int8"),
    "table<nf4, group=64, scale=f16>": ("emulated", "decoded"),
    "codebook<4>": ("emulated", "Gather of tables"),
    "hashed<8, seed=1>": ("emulated", "Gather of tables"),
    "codebook<3, rows=8>": ("emulated", "Gather of tables"),
    "codebook<5, rows=4>": ("emulated", "Gather of tables"),
    "ggml<q4_0>": ("native", "int4"),
    "ggml<q8_0>": ("native", "int8"),
    "ggml<q5_0>": ("emulated", "int8"),
    "ggml<q3_k>": ("emulated", "int4"),
    "ggml<q6_k>": ("emulated", "int8"),
    "ggml<iq4_xs>": ("emulated", "int8"),
    "ggml<q4_k>": ("emulated", "decoded"),
}
"""How the fast profile holds each encoding, and as what."""


@pytest.mark.parametrize("profile", ["fast", "portable"])
@pytest.mark.parametrize("text", FORMS)
def test_every_encoding_is_read_as_the_very_numbers(text: str, profile: str, tmp_path: Path) -> None:
    encoding = parse_encoding(text)
    recipe = encoded(24, 256, encoding)
    check_exact(recipe, tmp_path / "out", profile)
    if profile == "fast":
        holding, stored = FORMS[text]
        plan = {row.what: row for row in ONNX().plan(table_and_linear(recipe))}
        assert plan[text].holding == holding and ONNX().holds(encoding) == (holding == "native")
        assert stored in plan[text].note or holding == "native"


def test_what_is_decoded_has_the_dtype_of_the_graph(tmp_path: Path) -> None:
    """In f16 a decoded matrix is f16 too; a decoded table that is also a matrix is refused with a way out."""
    encoding = parse_encoding("ggml<q4_k>")
    b = GraphBuilder()
    recipe = encoded(16, 256, encoding)
    x = b.input("x", "f16", ("n", 256))
    b.output(y=nn.linear(x, b.weight(WeightSymbol("w", recipe))))
    write(b.module(), tmp_path / "out")
    found = run_directory(tmp_path / "out", {"x": np.eye(256, dtype=np.float16)})["y"]
    np.testing.assert_array_equal(found.T, recipe.read().astype(np.float16))
    b = GraphBuilder()
    w = b.weight(WeightSymbol("w", recipe))
    x, ids = b.input("x", "f16", ("n", 256)), b.input("ids", "i64", ("m",))
    b.output(y=nn.linear(x, w), rows=prim.cast(nn.embedding(ids, w), "f16"))
    with pytest.raises(LegalityError, match="'w' is a table and a matrix"):
        write(b.module(), tmp_path / "tied")
