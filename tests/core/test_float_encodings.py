"""Small floats, fixed tables and codebooks: text, bounds, exactness, and the formats they must equal."""

from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irlab.encodings import CodebookEncoding, FloatEncoding, LevelEncoding, TableEncoding, ggml, parse_encoding
from irlab.encodings.minifloat import ELEMENTS
from irlab.encodings.tables import NF4
from irlab.errors import InputError
from irlab.types import bf16, f16, f32, i8

Floats = npt.NDArray[np.float32]

elements = st.sampled_from(sorted(ELEMENTS))
floats = (
    st.builds(FloatEncoding, elements, st.sampled_from([16, 32]), st.sampled_from(["e8m0", "e4m3"]))
    | st.builds(FloatEncoding, elements, st.sampled_from([-1, 0, 32]), st.sampled_from(["f16", "f32"]))
    | st.builds(FloatEncoding, elements, st.just(32), st.just("i8"))
)
tables = st.builds(
    TableEncoding, st.sampled_from(["nf4", "iq4_nl"]), st.sampled_from([0, 32, 64]), st.sampled_from([f16, bf16, f32])
) | st.builds(TableEncoding, st.just("nf4"), st.just(32), st.just(i8))
codebooks = st.builds(CodebookEncoding, st.sampled_from([2, 3, 4, 5, 6]))
encodings = floats | tables | codebooks


def weights(rows: int = 6, columns: int = 256, seed: int = 0) -> Floats:
    return (np.random.default_rng(seed).standard_t(5, (rows, columns)) * 0.04).astype(np.float32)


@given(encodings)
def test_text_round_trips(encoding: LevelEncoding) -> None:
    assert parse_encoding(str(encoding)) == encoding


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("f<e2m2, group=32, scale=e8m0>", "'e2m2' is no format"),
        ("f<e2m1, group=0, scale=e8m0>", "belong to groups"),
        ("f<e2m1, group=32, scale=f64>", "scales cannot be f64"),
        ("f<e2m1, group=32>", "three arguments"),
        ("f<e2m1, 32, scale=e8m0>", "'32' is not group=N"),
        ("table<nf5, group=64, scale=f16>", "'nf5' is no table"),
        ("table<nf4, group=tensor, scale=f16>", "no scale of a whole tensor"),
        ("table<nf4, group=64>", "three arguments"),
        ("codebook<7>", "the bits of a code"),
    ],
)
def test_bad_text_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_encoding(text)


@settings(max_examples=60, deadline=None)
@given(encodings, st.sampled_from(["normal", "zero", "constant", "tiny", "outlier"]), st.integers(0, 99))
def test_packing_is_lossless_and_numbers_come_out_near(encoding: LevelEncoding, kind: str, seed: int) -> None:
    x = weights(3, 128, seed)
    if kind in ("zero", "constant"):
        x[:] = 0.03 if kind == "constant" else 0
    if kind == "outlier":
        x[1, 7] = 40
    if kind == "tiny":
        x *= np.float32(1e-20)
    codes = encoding.encode(x)
    packed = encoding.pack(codes)
    types = encoding.packed_types(x.shape)
    assert {name: part.shape for name, part in packed.items()} == {name: t.shape for name, t in types.items()}
    bits = sum(8 * part.nbytes for part in packed.values())
    assert bits == encoding.bits_per_weight(128) * x.size
    for name, part in encoding.unpack(packed, 128).items():
        np.testing.assert_array_equal(part, codes[name])
    y = encoding.decode(codes)
    assert np.isfinite(y).all()
    assert np.abs(x - y).max() <= 0.5 * np.abs(x).max() + 1e-7


BOUNDS = {
    "f<e2m1, group=32, scale=e8m0>": 0.03,
    "f<e2m1, group=16, scale=e4m3>": 0.015,
    "f<e2m3, group=32, scale=e8m0>": 0.003,
    "f<e3m2, group=32, scale=e8m0>": 0.004,
    "f<e4m3, group=32, scale=e8m0>": 0.001,
    "f<e4m3, group=0, scale=f32>": 0.001,
    "f<e4m3, group=tensor, scale=f16>": 0.001,
    "f<e5m2, group=tensor, scale=f32>": 0.004,
    "table<nf4, group=64, scale=f16>": 0.015,
    "table<nf4, group=64, scale=i8>": 0.015,
    "table<iq4_nl, group=32, scale=f16>": 0.012,
    "codebook<4>": 0.02,
    "codebook<3>": 0.05,
    "codebook<2>": 0.2,
}
"""Squared error over squared numbers, at most, for numbers with the tails of trained weights."""


@pytest.mark.parametrize("text", BOUNDS)
def test_the_error_is_within_the_bound(text: str) -> None:
    encoding, x = parse_encoding(text), weights(16, 512, 1)
    y = encoding.decode(encoding.encode(x))
    assert ((x - y) ** 2).sum() <= BOUNDS[text] * (x**2).sum()
    again = encoding.decode(encoding.encode(y))
    assert ((again - y) ** 2).sum() <= 0.05 * ((x - y) ** 2).sum()


@pytest.mark.parametrize("text", ["f<e2m1, group=32, scale=e8m0>", "f<e4m3, group=0, scale=f32>", "codebook<4>"])
def test_what_is_on_the_grid_is_found_again(text: str) -> None:
    encoding, x = parse_encoding(text), weights(8, 256, 2)
    y = encoding.decode(encoding.encode(x))
    np.testing.assert_array_equal(encoding.decode(encoding.encode(y)), y)


def test_mxfp4_is_ggmls() -> None:
    """The numbers that GGML's MXFP4 holds are those of the OCP format, block for block."""
    x = weights(4, 64, 3)
    encoding = FloatEncoding("e2m1", 32, "e8m0")
    codes = encoding.encode(x)
    nibbles = codes["codes"].reshape(4, 2, 2, 16)
    blocks = np.concatenate([codes["scales"][..., None], nibbles[:, :, 0] | nibbles[:, :, 1] << 4], axis=-1)
    theirs = gguf.dequantize(blocks.reshape(4, -1), gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(theirs, encoding.decode(codes))
    np.testing.assert_array_equal(ggml("mxfp4").decode(ggml("mxfp4").encode(x)), encoding.decode(codes))


def test_nvfp4_is_three_products_of_ml_dtypes_numbers() -> None:
    x = weights(4, 64, 4)
    codes = FloatEncoding("e2m1", 16, "e4m3").encode(x)
    assert codes["scales"].dtype == ml_dtypes.float8_e4m3fn and len(np.unique(codes["row_scales"])) == 1
    element = codes["codes"].view(ml_dtypes.float4_e2m1fn).astype(np.float32).reshape(4, 4, 16)
    scale = codes["scales"].astype(np.float32) * codes["row_scales"]
    expected = (element * scale[..., None]).reshape(4, 64)
    np.testing.assert_array_equal(FloatEncoding("e2m1", 16, "e4m3").decode(codes), expected)


def test_nf4_is_quantiles_of_the_normal_distribution() -> None:
    """The construction of the paper's appendix: 9 quantiles above zero, 8 below, scaled to one."""
    from statistics import NormalDist

    offset, normal = 0.9677083, NormalDist()
    above = [normal.inv_cdf(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-normal.inv_cdf(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    expected = np.sort([*above, 0, *below]) / max(above)
    np.testing.assert_allclose(NF4, expected, atol=1e-5)


def test_importance_moves_codebooks() -> None:
    x = weights(8, 512, 5)
    importance = np.where(np.arange(512) % 4 == 0, 50, 1).astype(np.float32)
    encoding = CodebookEncoding(3)
    losses = [((encoding.decode(encoding.encode(x, i)) - x) ** 2 * importance).sum() for i in (None, importance)]
    assert losses[1] < 0.9 * losses[0]


def test_a_codebook_loses_less_than_even_steps_of_as_many_bits() -> None:
    x = weights(8, 1024, 6)
    for bits in (2, 3, 4):
        ours = CodebookEncoding(bits)
        steps = parse_encoding(f"q<int{bits}, asym, group=0, scale=f16>")
        losses = [((e.decode(e.encode(x)) - x) ** 2).sum() for e in (ours, steps)]
        assert losses[0] < 0.9 * losses[1]


def test_stored_numbers_are_checked() -> None:
    x = weights(2, 64)
    for text, part, value in (
        ("f<e4m3, group=32, scale=f16>", "codes", 0x7F),
        ("f<e5m2, group=32, scale=f16>", "codes", 0x7C),
        ("f<e2m1, group=32, scale=e8m0>", "scales", 255),
        ("f<e2m1, group=32, scale=f16>", "scales", np.inf),
        ("f<e2m1, group=16, scale=e4m3>", "row_scales", np.nan),
        ("table<nf4, group=32, scale=f16>", "scales", np.nan),
        ("codebook<3>", "table", np.inf),
    ):
        encoding = parse_encoding(text)
        packed = {name: np.array(p) for name, p in encoding.pack(encoding.encode(x)).items()}
        packed[part].reshape(-1)[0] = value
        with pytest.raises(InputError, match="not finite"):
            encoding.unpack(packed, 64)


@pytest.mark.parametrize("text", ["f<e2m1, group=32, scale=e8m0>", "table<nf4, group=0, scale=f16>", "codebook<4>"])
def test_what_cannot_be_encoded_is_refused(text: str) -> None:
    encoding, x = parse_encoding(text), weights(2, 64)
    x[1, 2] = np.inf
    with pytest.raises(InputError, match="NaN or infinite"):
        encoding.encode(x)
    with pytest.raises(InputError, match="no rows"):
        encoding.check_shape((64,))
    if text != "f<e2m1, group=32, scale=e8m0>":
        with pytest.raises(InputError, match="fit"):
            encoding.encode(np.full((1, 64), 1e30, np.float32))
    elif isinstance(encoding, FloatEncoding):
        with pytest.raises(InputError, match="whole groups of 32"):
            encoding.check_shape((2, 48))
