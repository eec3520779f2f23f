"""GGML types as encodings: bytes that gguf-py reads, and searches that lose no more than ggml's own."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irlab.backends.gguf.ggml import quantize
from irlab.encodings import LevelEncoding, ggml, parse_encoding
from irlab.encodings.ggml import BLOCK_TYPES, FLOAT_TYPES, VECTOR_TYPES
from irlab.encodings.ggml.encoding import BlockEncoding
from irlab.errors import InputError

Floats = npt.NDArray[np.float32]
NESTED = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "nvfp4")
"""Types whose scales of groups are themselves rounded."""


def gguf_type(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def heavy_tailed(rows: int, columns: int, seed: int = 0) -> Floats:
    """Numbers with the outliers of trained weights."""
    return (np.random.default_rng(seed).standard_t(5, (rows, columns)) * 0.04).astype(np.float32)


def weighted_error(x: Floats, y: Floats, weights: Floats) -> float:
    return float((weights * (x.astype(np.float64) - y) ** 2).sum())


@pytest.mark.parametrize("name", [*BLOCK_TYPES, *VECTOR_TYPES, *FLOAT_TYPES])
def test_names_and_sizes_are_ggmls(name: str) -> None:
    encoding = ggml(name.upper())
    assert parse_encoding(f"ggml<{name}>") == encoding and str(encoding) == f"ggml<{name}>"
    assert encoding.block == gguf.GGML_QUANT_SIZES[gguf_type(name)]
    size, size_bytes = encoding.block
    assert encoding.bits_per_weight(size) == 8 * size_bytes / size


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_any_bytes_decode_as_gguf_py_decodes_them_and_pack_again(name: str) -> None:
    encoding = ggml(name)
    assert isinstance(encoding, BlockEncoding)
    blocks = np.random.default_rng(1).integers(0, 256, (6, encoding.row_bytes(512)), dtype=np.uint8)
    if name == "tq1_0":  # not every byte is one that five digits make
        blocks = encoding.encode(heavy_tailed(6, 512))["blocks"]
    with np.errstate(all="ignore"):
        ours, theirs = encoding.decode({"blocks": blocks}), gguf.dequantize(blocks, gguf_type(name))
        numbers, points = encoding.split({"blocks": blocks})
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(encoding.assemble(numbers, points.parts)["blocks"], blocks)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_what_is_encoded_is_read_by_gguf_py(name: str) -> None:
    encoding, x = ggml(name), heavy_tailed(9, 512)
    codes = encoding.encode(x)
    assert codes["blocks"].shape == (9, encoding.row_bytes(512))
    np.testing.assert_array_equal(gguf.dequantize(codes["blocks"], gguf_type(name)), encoding.decode(codes))
    deep = encoding.encode(x.reshape(3, 3, 512))
    np.testing.assert_array_equal(deep["blocks"].reshape(9, -1), codes["blocks"])


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_no_more_is_lost_than_by_ggml(name: str, weighted: bool) -> None:
    encoding, x = ggml(name), heavy_tailed(48, 1024, 3)
    assert isinstance(encoding, LevelEncoding)
    importance = np.exp(np.random.default_rng(4).standard_normal(1024)).astype(np.float32) if weighted else None
    if importance is None:
        grouped = x.reshape(len(x), encoding.fit(x[:1])._points.scale.shape[1], -1)  # type: ignore[union-attr]
        weights = np.sqrt((grouped**2).mean(-1, keepdims=True) + grouped**2).reshape(x.shape)
    else:
        weights = importance
    ours = encoding.decode(encoding.encode(x, importance))
    theirs = gguf.dequantize(quantize(x, name, importance), gguf_type(name))
    assert weighted_error(x, ours, weights) <= weighted_error(x, theirs, weights)


BOUNDS = {
    "q2_k": 0.1, "q3_k": 0.04, "q4_k": 0.008, "q5_k": 0.002, "q6_k": 6e-4, "iq4_xs": 0.012, "iq4_nl": 0.012,
    "q4_0": 0.015, "q4_1": 0.008, "q5_0": 0.004, "q5_1": 0.002, "q8_0": 6e-5, "tq1_0": 0.4, "tq2_0": 0.4,
    "mxfp4": 0.03, "nvfp4": 0.03,
}  # fmt: skip
"""Squared error over squared numbers, at most, for numbers like those of `heavy_tailed`."""


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_the_error_is_within_the_bound_of_the_type(name: str) -> None:
    encoding, x = ggml(name), heavy_tailed(32, 1024, 5)
    y = encoding.decode(encoding.encode(x))
    assert ((x - y) ** 2).sum() <= BOUNDS[name] * (x**2).sum()


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_encoding_again_changes_little(name: str) -> None:
    """Types with one level of scales find their numbers again; the others nearly, as scales are fitted anew."""
    encoding, x = ggml(name), heavy_tailed(32, 1024, 6)
    y = encoding.decode(encoding.encode(x))
    again = encoding.decode(encoding.encode(y))
    if name in NESTED:
        assert ((again - y) ** 2).sum() < 0.1 * ((x - y) ** 2).sum()
    else:
        assert ((again - y) ** 2).sum() < 1e-5 * ((x - y) ** 2).sum()


@settings(max_examples=30)
@given(
    st.sampled_from(sorted(BLOCK_TYPES)),
    st.sampled_from(["zero", "constant", "one", "tiny", "positive", "negative", "outlier"]),
    st.integers(0, 99),
)
def test_odd_blocks_come_out_finite_and_near(name: str, kind: str, seed: int) -> None:
    x = heavy_tailed(2, 256, seed)
    if kind in ("zero", "constant", "one"):
        x[:] = {"zero": 0.0, "constant": 0.07, "one": 0.0}[kind]
        x[0, 11] = {"one": -0.5}.get(kind, x[0, 11])
    elif kind == "tiny":
        x *= np.float32(1e-30)
    elif kind in ("positive", "negative"):
        x = np.abs(x) * np.float32(1 if kind == "positive" else -1)
    else:
        x[:, 5] = 30
    encoding = ggml(name)
    with np.errstate(all="raise", under="ignore"):
        y = encoding.decode(encoding.encode(x))
    assert np.isfinite(y).all()
    worst = 1.0 if name.startswith(("tq", "q2", "nvfp4", "mxfp4")) else 0.25
    assert np.abs(x - y).max() <= worst * np.abs(x).max() + 1e-7
    if kind == "zero":
        assert not y.any()


def test_four_bits_are_those_of_the_integer_encoding() -> None:
    x = heavy_tailed(4, 64, 8)
    ours = ggml("q4_0")
    integers = parse_encoding("q<int4, sym, group=32, scale=f16>")
    np.testing.assert_array_equal(ours.decode(ours.encode(x)), integers.decode(integers.encode(x)))


@pytest.mark.parametrize("name", ["iq2_xs", "iq3_s"])
def test_types_of_vectors_go_through_ggml(name: str) -> None:
    encoding, x = ggml(name), heavy_tailed(3, 512)
    importance = np.ones(512, np.float32)
    codes = encoding.encode(x, importance)
    np.testing.assert_array_equal(codes["blocks"], quantize(x, name, importance))
    assert ((encoding.decode(codes) - x) ** 2).sum() < 0.2 * (x**2).sum()
    with pytest.raises(InputError, match="no grid of single numbers"):
        encoding.grid(3, 512)


@pytest.mark.parametrize("name", FLOAT_TYPES)
def test_floats_are_cast(name: str) -> None:
    encoding, x = ggml(name), np.float32([[1.0, -2.5, 65504.0]])
    np.testing.assert_allclose(encoding.decode(encoding.encode(x)), x, rtol=2**-8)
    if name == "f16":
        with pytest.raises(InputError, match="larger than 65504"):
            encoding.encode(np.float32([[1e6]]))


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(InputError, match="unknown GGML type 'q4_z'"):
        ggml("q4_z")
    with pytest.raises(InputError, match="is not an encoding: unknown GGML type"):
        parse_encoding("ggml<q9>")
    with pytest.raises(InputError, match="one argument"):
        parse_encoding("ggml<q4_k, 3>")
    with pytest.raises(InputError, match="rows of 288 numbers are not whole blocks of Q4_K"):
        ggml("q4_k").check_shape((4, 288))
    x = heavy_tailed(2, 256)
    x[1, 3] = np.nan
    with pytest.raises(InputError, match="NaN"):
        ggml("q4_k").encode(x)
    for name in ("q4_k", "q6_k", "q4_1", "iq4_nl", "nvfp4"):
        with pytest.raises(InputError, match="do not fit scales"):
            ggml(name).encode(np.full((1, 256), 1e30, np.float32))
    blocks = ggml("q4_k").encode(heavy_tailed(1, 256))["blocks"].copy()
    blocks[0, :2] = 0xFF
    with pytest.raises(InputError, match="not finite"):
        ggml("q4_k").unpack({"blocks": blocks}, 256)
