"""GGML types: bytes, conversions, refusals."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from irlab.backends.gguf import ggml, library
from irlab.errors import InputError

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((96, 512)).astype(np.float32)
NUMPY_TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"]
# Root mean square error on unit normal numbers stays below these, for a quantiser that works at all.
ERROR_BOUNDS = {
    "Q2_K": 0.35, "Q3_K": 0.2, "Q4_K": 0.09, "Q5_K": 0.05, "Q6_K": 0.03, "IQ4_NL": 0.1, "IQ4_XS": 0.1,
    "Q4_0": 0.12, "Q4_1": 0.1, "Q5_0": 0.06, "Q5_1": 0.05, "Q8_0": 0.01, "F16": 1e-3, "BF16": 5e-3, "F32": 0.0,
}  # fmt: skip

needs_library = pytest.mark.skipif(library.ggml_library() is None, reason="no wheel with a compiled ggml is installed")


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setattr(ggml, "_library", lambda: None)


@needs_library
@pytest.mark.parametrize("name", ERROR_BOUNDS)
def test_decoding_gives_back_the_numbers(name):
    data = ggml.quantize(ROWS, name)
    assert data.shape == (96, ggml.ggml_type(name).row_bytes(512))
    assert np.sqrt(np.mean((ggml.dequantize(data, name) - ROWS) ** 2)) <= ERROR_BOUNDS[name]


@needs_library
@pytest.mark.parametrize("name", NUMPY_TYPES)
def test_library_and_gguf_py_write_the_same_bytes(name):
    expected = gguf.quantize(ROWS, gguf.GGMLQuantizationType[name]).view(np.uint8)
    assert np.array_equal(ggml.quantize(ROWS, name), expected)


@pytest.mark.parametrize("name", ["F32", *NUMPY_TYPES])
def test_without_a_library_gguf_py_encodes(no_library, name):
    expected = gguf.quantize(ROWS, gguf.GGMLQuantizationType[name]).view(np.uint8)
    assert np.array_equal(ggml.quantize(ROWS, name, jobs=2), expected)


def test_a_type_that_needs_the_library_says_so(no_library):
    with pytest.raises(InputError, match=r"blk\.0: Q4_K needs a compiled ggml.*pip install xllamacpp"):
        ggml.quantize(ROWS, "q4_k", name="blk.0")
    with pytest.raises(InputError, match="column importances needs a compiled ggml"):
        ggml.quantize(ROWS, "q4_0", np.ones(512, np.float32))


@needs_library
@pytest.mark.parametrize("name", ["Q8_0", "Q6_K", "F16"])
def test_threads_change_nothing(name):
    rows = RNG.standard_normal((4096, 512)).astype(np.float32)
    assert np.array_equal(ggml.quantize(rows, name), ggml.quantize(rows, name, jobs=3))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("dtype", [ggml.BF16, np.float16])
def test_half_inputs_equal_their_f32_copies(name, dtype):
    halves = ROWS.astype(dtype)
    assert np.array_equal(ggml.quantize(halves, name), ggml.quantize(halves.astype(np.float32), name))


def test_every_finite_bf16_becomes_the_f16_that_numpy_gives():
    patterns = np.arange(1 << 16, dtype=np.uint16).view(ggml.BF16)
    small = patterns[np.abs(patterns.astype(np.float32)) < 65504]
    stored = ggml.quantize(small[: len(small) // 8 * 8].reshape(-1, 8), "F16").view(np.float16).ravel()
    assert np.array_equal(stored, small.astype(np.float32).astype(np.float16)[: stored.size])


@needs_library
def test_importances_move_the_error_to_unimportant_columns():
    importance = np.where(np.arange(512) % 2 == 0, 100.0, 0.01).astype(np.float32)
    error = (ggml.dequantize(ggml.quantize(ROWS, "Q4_K", importance), "Q4_K") - ROWS) ** 2
    plain = (ggml.dequantize(ggml.quantize(ROWS, "Q4_K"), "Q4_K") - ROWS) ** 2
    assert error[:, ::2].mean() < plain[:, ::2].mean() < error[:, 1::2].mean()


@needs_library
def test_importances_are_checked():
    with pytest.raises(InputError, match=r"importances have shape \[3\], the rows 512 columns"):
        ggml.quantize(ROWS, "Q4_K", np.ones(3, np.float32))
    with pytest.raises(InputError, match="importances hold NaN"):
        ggml.quantize(ROWS, "Q4_K", np.full(512, np.nan, np.float32))
    with pytest.raises(InputError, match="cannot be encoded without column importances"):
        ggml.quantize(ROWS, "IQ2_XXS")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ggml.BF16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_values_are_located(dtype, value):
    rows = np.zeros((600, 512), dtype)
    rows[517, 33] = value
    with pytest.raises(InputError, match=r"weight 'model\.w' holds (NaN|an infinity) at \[517, 33\]"):
        ggml.quantize(rows, "Q8_0", name="model.w", jobs=2)


@pytest.mark.parametrize("dtype", [np.float32, ggml.BF16])
def test_values_too_large_for_f16_are_refused(dtype):
    with pytest.raises(InputError, match=r"larger than 65504.*bf16"):
        ggml.quantize(np.full((1, 32), 1e6, dtype), "F16")


def test_numbers_of_the_stored_type_are_not_copied():
    rows = ROWS.astype(np.float16)
    assert np.shares_memory(ggml.quantize(rows, "F16"), rows)


def test_rows_must_be_whole_blocks():
    with pytest.raises(InputError, match=r"ffn\.w: rows of 288 numbers are not whole blocks of Q4_K \(256 numbers\)"):
        ggml.quantize(np.zeros((2, 288), np.float32), "Q4_K", name="ffn.w")


def test_unknown_type_names_the_known_ones():
    with pytest.raises(InputError, match=r"unknown GGML type 'q4_kk'.*Q4_K"):
        ggml.ggml_type("q4_kk")


def test_integers_go_only_into_their_own_type():
    ids = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert np.array_equal(ggml.quantize(ids, "I32").view(np.int32), ids)
    with pytest.raises(InputError, match="int32 numbers cannot be stored as F16"):
        ggml.quantize(ids, "F16")


def test_shapes_with_experts_keep_their_leading_dimensions():
    assert ggml.quantize(np.zeros((4, 6, 64), np.float32), "Q8_0").shape == (4, 6, 68)
