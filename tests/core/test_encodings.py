"""Encodings: text, exact decoding, the scale search, and the formats that they must equal bit for bit."""

from __future__ import annotations

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from irlab.encodings import BITS, IntegerEncoding, parse_encoding
from irlab.encodings.search import IntegerGrid, candidates
from irlab.errors import InputError
from irlab.types import bf16, f16, f32, i8, tensor
from irlab.weights import Array, Encode

Floats = npt.NDArray[np.float32]

encodings = st.builds(
    IntegerEncoding,
    bits=st.sampled_from(BITS),
    symmetric=st.booleans(),
    group=st.sampled_from([0, 8, 32]),
    scale=st.sampled_from([f16, bf16, f32]),
)
coarse = st.builds(
    IntegerEncoding, st.sampled_from(BITS), st.booleans(), st.just(-1), st.sampled_from([f16, f32])
) | st.builds(IntegerEncoding, st.sampled_from(BITS), st.booleans(), st.sampled_from([8, 32]), st.just(i8))
"""One scale for a tensor, and scales that are themselves integers."""


@st.composite
def matrices(draw: st.DrawFn, magnitude: float = 1e4) -> Floats:
    """Rows of 32 or 64 numbers: random, constant, zero, sparse, tiny or denormal."""
    rows, columns = draw(st.integers(1, 4)), draw(st.sampled_from([32, 64]))
    kind = draw(st.sampled_from(["any", "normal", "constant", "zero", "sparse", "tiny", "denormal", "outlier"]))
    x = np.random.default_rng(draw(st.integers(0, 999))).standard_normal((rows, columns), dtype=np.float32)
    if kind == "any":
        # Numbers that differ by so much that their squares vanish cannot be told apart in f32.
        elements = st.floats(-magnitude, magnitude, width=32, allow_subnormal=False)
        return draw(hnp.arrays(np.float32, (rows, columns), elements=elements))
    if kind == "sparse":
        x[np.abs(x) < 2] = 0
    if kind == "outlier":
        x[:, 3] *= 100
    scale = {"constant": 0, "zero": 0, "tiny": 1e-6, "denormal": 1e-41}.get(kind, 1)
    return (x * np.float32(scale) + np.float32(draw(st.floats(-2, 2, width=16)) if kind == "constant" else 0)).astype(
        np.float32
    )


def weighted_error(x: Floats, y: Floats, group: int) -> npt.NDArray[np.float64]:
    """The error that the search minimises by default, for each group, in f64."""
    a, b = (v.reshape(-1, group or v.shape[-1]).astype(np.float64) for v in (x, y))
    weights = np.sqrt((a * a).mean(1, keepdims=True) + a * a)
    return np.asarray((weights * (a - b) ** 2).sum(1))


def plain_rounding(x: Floats, encoding: IntegerEncoding) -> Floats:
    """Round to nearest under the scale that just spans each group, straight from the definition."""
    group = encoding.group or x.shape[-1]
    g = x.reshape(-1, group)
    kind = {f16: np.float16, bf16: ml_dtypes.bfloat16, f32: np.float32}[encoding.scale]
    if encoding.symmetric:
        extreme = np.take_along_axis(g, np.abs(g).argmax(1)[:, None], 1)
        scale = (extreme / np.float32(encoding.lowest)).astype(kind).astype(np.float32)
        zero = np.zeros_like(scale)
    else:
        low, high = np.minimum(g.min(1, keepdims=True), 0), np.maximum(g.max(1, keepdims=True), 0)
        scale = ((high - low) / np.float32(encoding.highest)).astype(kind).astype(np.float32)
        exact = np.where(high > low, (high - low) / np.float32(encoding.highest), 1)
        zero = np.rint(-low / exact)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(np.isfinite(1 / scale), 1 / scale, 0)
    q = np.clip(np.rint(g * inverse) + zero, encoding.lowest, encoding.highest) - zero
    return (q * scale).astype(np.float32).reshape(x.shape)


@given(encodings | coarse)
def test_text_round_trips(encoding: IntegerEncoding) -> None:
    assert parse_encoding(str(encoding)) == encoding


def test_text_is_the_documented_one() -> None:
    assert str(IntegerEncoding(4)) == "q<int4, sym, group=32, scale=f16>"
    assert parse_encoding(" q<int8,asym,group=0,scale=bf16> ") == IntegerEncoding(8, False, 0, bf16)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("q", "is not an encoding"),
        ("r<int4, sym, group=32, scale=f16>", "q<...>"),
        ("q<int4, sym, group=32, scale=f16", "is not an encoding"),
        ("q<int7, sym, group=32, scale=f16>", "'int7' is not one of"),
        ("q<int4, symm, group=32, scale=f16>", "'symm' is not sym or asym"),
        ("q<int4, sym, group=-1, scale=f16>", "'group=-1' is not group=N"),
        ("q<int4, sym, group=32, scale=f64>", "'scale=f64' is not one of"),
        ("q<int4, sym, group=32>", "four arguments"),
    ],
)
def test_bad_text_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason.replace("(", "\\(")):
        parse_encoding(text)


@pytest.mark.parametrize("bad", [{"bits": 7}, {"bits": 4, "group": -2}, {"bits": 4, "scale": tensor("f64", ()).dtype}])
def test_impossible_encodings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError):
        IntegerEncoding(**bad)  # type: ignore[arg-type]


@given(encodings, matrices())
def test_codes_are_in_range_and_losses_no_larger_than_plain_roundings(encoding: IntegerEncoding, x: Floats) -> None:
    codes = encoding.encode(x)
    assert codes["codes"].min() >= encoding.lowest and codes["codes"].max() <= encoding.highest
    assert codes["codes"].dtype == (np.int8 if encoding.symmetric else np.uint8)
    assert codes["scales"].shape == (len(x), encoding.groups(x.shape[1])) and np.isfinite(codes["scales"]).all()
    y = encoding.decode(codes)
    ours = weighted_error(x, y, encoding.group)
    plain = weighted_error(x, plain_rounding(x, encoding), encoding.group)
    # Searched in f32, relative to the largest number of a group.
    unit = np.abs(x.reshape(len(ours), -1)).max(1).astype(np.float64)
    assert (ours <= plain * (1 + 1e-4) + 1e-9 * unit**3).all()


SMALLEST_NORMAL = {f16: 2.0**-14, bf16: 2.0**-126}


@given(encodings.filter(lambda e: e.scale is not f32 and (e.symmetric or e.bits < 8)), matrices())
def test_what_is_on_the_grid_is_found_again(encoding: IntegerEncoding, x: Floats) -> None:
    codes = encoding.encode(x)
    # Among subnormal scales the steps are so coarse that a zero point may find a better partner the second time.
    scales = np.abs(codes["scales"].astype(np.float32))
    assume(encoding.symmetric or not ((scales > 0) & (scales < SMALLEST_NORMAL[encoding.scale])).any())
    y = encoding.decode(codes)
    again = encoding.decode(encoding.encode(y))
    np.testing.assert_array_equal(again, y)


@given(st.sampled_from([2, 3, 4]), st.integers(0, 999))
def test_any_codes_of_few_bits_are_found_again(bits: int, seed: int) -> None:
    """A matrix that another tool put on such a grid loses nothing, whatever codes it used."""
    encoding = IntegerEncoding(bits)
    rng = np.random.default_rng(seed)
    highest = rng.integers(1, encoding.highest + 1)
    codes = rng.integers(-highest, highest + 1, (4, 32)).astype(np.int8)
    scales = (rng.random((4, 1)) + 0.01).astype(np.float16)
    x = encoding.decode({"codes": codes, "scales": scales})
    np.testing.assert_array_equal(encoding.decode(encoding.encode(x)), x)


@given(coarse, matrices())
def test_errors_are_a_step_of_the_widest_group_at_most(encoding: IntegerEncoding, x: Floats) -> None:
    y = encoding.decode(encoding.encode(x))
    reach = np.abs(x).max(initial=1e-6) if encoding.symmetric else x.max(initial=0) - x.min(initial=0)
    steps = -encoding.lowest if encoding.symmetric else encoding.highest
    # A step of clipping or rounding, and what the scale is off by when stored, below the smallest normal f16 too.
    assert np.abs(x - y).max() <= 1.5 * reach / steps + 0.02 * reach + 1e-7 + steps * 2.0**-25


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_of_zeros_leave_the_scales_of_their_row_alone(bits: int, symmetric: bool) -> None:
    x = np.zeros((2, 32), np.float32)
    x[0, 3], x[1, 9] = 0.004, -1.0
    encoding = IntegerEncoding(bits, symmetric, 8, i8)
    np.testing.assert_allclose(encoding.decode(encoding.encode(x)), x, rtol=0.02)


def test_one_scale_serves_a_tensor_that_is_encoded_in_pieces() -> None:
    x = np.random.default_rng(5).standard_normal((8, 32), dtype=np.float32)
    for encoding in (IntegerEncoding(8, True, -1, f32), IntegerEncoding(8, False, -1, f16)):
        whole = encoding.encode(x)
        assert len(np.unique(whole["scales"])) == 1
        recipe = Encode(Array(tensor("f32", x.shape), x), encoding)
        pieces = [recipe.codes(start, start + 2) for start in range(0, 8, 2)]
        for name, part in whole.items():
            np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), part)


@given(encodings | coarse, matrices())
def test_packing_is_lossless(encoding: IntegerEncoding, x: Floats) -> None:
    codes = encoding.encode(x)
    packed = encoding.pack(codes)
    types = encoding.packed_types(x.shape)
    assert {name: part.shape for name, part in packed.items()} == {name: t.shape for name, t in types.items()}
    unpacked = encoding.unpack(packed, x.shape[1])
    assert set(unpacked) == set(codes)
    for name, part in codes.items():
        np.testing.assert_array_equal(unpacked[name], part)
        assert unpacked[name].dtype == part.dtype


def test_stored_codes_are_checked() -> None:
    symmetric, asymmetric = IntegerEncoding(8), IntegerEncoding(4, symmetric=False)
    x = np.ones((1, 32), np.float32)
    packed = dict(symmetric.encode(x))
    with pytest.raises(InputError, match="below -127"):
        symmetric.unpack({**packed, "codes": np.full((1, 32), -128, np.int8)}, 32)
    with pytest.raises(InputError, match="not finite"):
        symmetric.unpack({**packed, "scales": np.array([[np.inf]], np.float16)}, 32)
    packed = dict(asymmetric.pack(asymmetric.encode(x)))
    with pytest.raises(InputError, match="above 15"):
        asymmetric.unpack({**packed, "zeros": np.array([[16]], np.uint8)}, 32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", [IntegerEncoding(4), IntegerEncoding(8, symmetric=False)])
def test_nan_and_infinities_are_refused(encoding: IntegerEncoding, bad: float) -> None:
    x = np.ones((3, 64), np.float32)
    x[1, 40] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        encoding.encode(x)


def test_numbers_beyond_the_scales_are_refused_not_made_infinite() -> None:
    x = np.full((1, 32), 1e30, np.float32)
    with pytest.raises(InputError, match="do not fit scales of float16"):
        IntegerEncoding(4).encode(x)
    y = IntegerEncoding(4, scale=f32)
    np.testing.assert_allclose(y.decode(y.encode(x)), x, rtol=1e-6)


def test_shapes_that_are_no_whole_groups_are_refused() -> None:
    with pytest.raises(InputError, match="rows of 172 numbers are not whole groups of 32"):
        IntegerEncoding(4).check_shape((64, 172))
    with pytest.raises(InputError, match="no rows"):
        IntegerEncoding(4).check_shape((64,))
    IntegerEncoding(4, group=0).check_shape((64, 172))


def test_importance_moves_the_error_to_where_it_matters_less() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 64), dtype=np.float32)
    importance = np.where(np.arange(64) % 4 == 0, 100, 1).astype(np.float32)
    encoding = IntegerEncoding(3)
    losses = [((encoding.decode(encoding.encode(x, i)) - x) ** 2 * importance).sum() for i in (None, importance)]
    assert losses[1] < 0.9 * losses[0]


def test_the_search_beats_plain_rounding_on_normal_weights() -> None:
    """On normal numbers the search takes away at least a tenth of the squared error of int4, groups of 32."""
    x = np.random.default_rng(1).standard_normal((256, 1024), dtype=np.float32)
    encoding = IntegerEncoding(4)
    ours = weighted_error(x, encoding.decode(encoding.encode(x)), 32).sum()
    assert ours < 0.9 * weighted_error(x, plain_rounding(x, encoding), 32).sum()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_candidates_begin_with_plain_rounding_and_stay_few(bits: int, symmetric: bool) -> None:
    encoding = IntegerEncoding(bits, symmetric)
    grid = IntegerGrid(bits, encoding.lowest, encoding.highest, symmetric, np.dtype(np.float16))
    for size in (32, 128, 4096):
        found = candidates(grid, size)
        assert found[0] == grid.full and 8 <= len(found) <= 40 and len(set(found)) == len(found)


def q4_0_blocks(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float16]) -> npt.NDArray[np.uint8]:
    """GGML's block_q4_0: an f16 scale, then 16 bytes; byte j has number j in its low nibble, j + 16 in the high one."""
    nibbles = (codes.reshape(-1, 2, 16) + 8).astype(np.uint8)
    packed = nibbles[:, 0] | nibbles[:, 1] << 4
    return np.concatenate([scales.reshape(-1, 1).view(np.uint8), packed], 1)


def test_int4_is_q4_0() -> None:
    x = np.random.default_rng(2).standard_normal((8, 64), dtype=np.float32)
    encoding = IntegerEncoding(4)
    codes = encoding.encode(x)
    blocks = q4_0_blocks(codes["codes"], codes["scales"]).reshape(8, -1)
    theirs = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(theirs, encoding.decode(codes))


def test_int8_is_q8_0() -> None:
    x = np.random.default_rng(3).standard_normal((8, 64), dtype=np.float32)
    encoding = IntegerEncoding(8)
    codes = encoding.encode(x)
    scales = codes["scales"].reshape(-1, 1).view(np.uint8)
    blocks = np.concatenate([scales, codes["codes"].reshape(-1, 32).view(np.uint8)], 1).reshape(8, -1)
    theirs = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(theirs, encoding.decode(codes))


@pytest.mark.parametrize("bits", [4, 8])
def test_symmetric_integers_are_matmulnbits(bits: int) -> None:
    """ONNX Runtime multiplies the identity by codes as it stores them: u4 around 8, u8 around 128."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    n, k = 8, 64
    x = np.random.default_rng(4).standard_normal((n, k), dtype=np.float32)
    encoding = IntegerEncoding(bits)
    codes = encoding.encode(x)
    unsigned = (codes["codes"].astype(np.int16) + (1 << bits - 1)).astype(np.uint8).reshape(n, k // 32, 32)
    blob = unsigned if bits == 8 else unsigned[..., 0::2] | unsigned[..., 1::2] << 4
    initializers = {"b": blob, "scales": codes["scales"].astype(np.float32).reshape(n, -1)}
    node = helper.make_node(
        "MatMulNBits", ["a", *initializers], ["y"], domain="com.microsoft", K=k, N=n, bits=bits, block_size=32
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [k, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [k, n])],
        [numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in initializers.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"a": np.eye(k, dtype=np.float32)})
    np.testing.assert_array_equal(theirs.T, encoding.decode(codes))
