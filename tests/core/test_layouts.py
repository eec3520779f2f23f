"""Layouts of quantised checkpoints: what is packed is unpacked, bit by bit as the owners of the layouts pack it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irlab.encodings import Codes, Encoding, FloatEncoding, IntegerEncoding
from irlab.errors import InputError
from irlab.layouts import LAYOUTS, Names
from irlab.types import bf16, f16, f32, i8

INTEGERS = [
    IntegerEncoding(bits, sym, group, f16) for bits in (2, 3, 4, 8) for sym in (True, False) for group in (0, 32)
]
NVFP4, FP8 = FloatEncoding("e2m1", 16, "e4m3"), FloatEncoding("e4m3", 0, "f32")
HELD: list[tuple[str, Encoding]] = [
    *[("compressed-tensors", e) for e in (*INTEGERS, IntegerEncoding(5, False, 32, bf16), NVFP4, FP8)],
    *[("gptq", e) for e in INTEGERS],
    *[("awq", e) for e in INTEGERS if e.bits == 4 and not e.symmetric],
    *[("modelopt", e) for e in (IntegerEncoding(4, True, 32), IntegerEncoding(8, True, 0, f32), NVFP4)],
]


def codes_of(encoding: Encoding, shape: tuple[int, int], seed: int = 0) -> Codes:
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return encoding.encode(weight)


@pytest.mark.parametrize("layout, encoding", HELD, ids=lambda v: str(v))
@given(rows=st.integers(1, 3), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_codes_come_back_from_the_tensors_of_a_layout(
    layout: str, encoding: Encoding, rows: int, groups: int, seed: int
) -> None:
    shape = (32 * rows, 32 * groups)
    codes = codes_of(encoding, shape, seed)
    found = LAYOUTS[layout]
    assert found.refusal(encoding, shape) == ""
    tensors = found.pack(encoding, shape, codes)
    types = found.types(encoding, shape)
    assert tensors.keys() == types.keys()
    assert all(tensors[part].shape == kind.shape for part, kind in types.items())
    back = found.unpack(encoding, shape, tensors)
    assert back.keys() == codes.keys()
    for part, values in codes.items():
        if part == "row_scales" and layout == "compressed-tensors":
            np.testing.assert_allclose(back[part], values, rtol=1.2e-7)
        else:
            assert back[part].dtype == values.dtype and np.array_equal(back[part].view(np.uint8), values.view(np.uint8))


def test_symmetric_codes_in_the_awq_layout_have_the_zero_point_8() -> None:
    symmetric, asymmetric = IntegerEncoding(4, True, 32), IntegerEncoding(4, False, 32)
    codes = codes_of(symmetric, (8, 32))
    tensors = LAYOUTS["awq"].pack(symmetric, (8, 32), codes)
    back = LAYOUTS["awq"].unpack(asymmetric, (8, 32), tensors)
    assert (back["zeros"] == 8).all()
    assert np.array_equal(asymmetric.decode(back), symmetric.decode(codes))


def test_compressed_tensors_unpacks_what_is_packed() -> None:
    """By the package itself, where it is installed."""
    pytest.importorskip("compressed_tensors")
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    for encoding in (IntegerEncoding(4, True, 32), IntegerEncoding(3, False, 32), IntegerEncoding(8, True, 0)):
        codes = codes_of(encoding, (32, 64))
        tensors = LAYOUTS["compressed-tensors"].pack(encoding, (32, 64), codes)
        found = unpack_from_int32(torch.from_numpy(tensors["weight_packed"]), encoding.bits, torch.Size((32, 64)))
        middle = 0 if encoding.symmetric else 1 << (encoding.bits - 1)
        assert np.array_equal(found.numpy().astype(int) + middle, codes["codes"].astype(int))


def test_gptq_packs_as_its_authors_do() -> None:
    """Word by word, by the loops of the first implementation: eight nibbles of a column, then of the zero points."""
    encoding, shape = IntegerEncoding(4, True, 32), (32, 64)
    codes = codes_of(encoding, shape)
    tensors = LAYOUTS["gptq"].pack(encoding, shape, codes)
    raw = (codes["codes"].astype(np.int64) + 8).T
    words = sum(raw[i::8] << (4 * i) for i in range(8))
    assert np.array_equal(tensors["qweight"].view(np.uint32), words.astype(np.uint32))
    assert (tensors["qzeros"].view(np.uint32) == 0x77777777).all()
    assert np.array_equal(tensors["g_idx"], np.arange(64) // 32)


def test_awq_packs_as_its_authors_do() -> None:
    encoding, shape = IntegerEncoding(4, False, 32), (16, 32)
    codes = codes_of(encoding, shape)
    tensors = LAYOUTS["awq"].pack(encoding, shape, codes)
    raw = codes["codes"].T.astype(np.int64)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    words = sum(raw[:, order[i] :: 8] << (4 * i) for i in range(8))
    assert np.array_equal(tensors["qweight"].view(np.uint32), words.astype(np.uint32))


def test_modelopt_packs_two_rows_to_a_byte() -> None:
    encoding, shape = IntegerEncoding(4, True, 32), (4, 32)
    codes = codes_of(encoding, shape)
    weight = LAYOUTS["modelopt"].pack(encoding, shape, codes)["weight"]
    assert weight.shape == (2, 32)
    low, high = codes["codes"][0, 5] & 15, codes["codes"][1, 5] & 15
    assert weight[0, 5] == low | high << 4


@pytest.mark.parametrize(
    "layout, encoding, shape, reason",
    [
        ("gptq", IntegerEncoding(5), (32, 32), "2, 3, 4, 8 bits, not of 5"),
        ("gptq", IntegerEncoding(4), (40, 32), "32 rows and 32 columns"),
        ("gptq", FP8, (32, 32), "holds integers"),
        ("awq", IntegerEncoding(3), (32, 32), "4 bits, not of 3"),
        ("awq", IntegerEncoding(4), (12, 32), "8 rows at a time"),
        ("modelopt", IntegerEncoding(4, False), (32, 32), "symmetric int4"),
        ("modelopt", IntegerEncoding(4), (3, 32), "two rows"),
        ("compressed-tensors", FloatEncoding("e2m1"), (32, 32), "holds NVFP4 and FP8"),
        ("compressed-tensors", IntegerEncoding(4, True, -1), (32, 32), "not one for the tensor"),
        ("compressed-tensors", IntegerEncoding(4, True, 32, i8), (32, 32), "not as i8"),
    ],
)
def test_what_a_layout_does_not_hold_is_said(
    layout: str, encoding: Encoding, shape: tuple[int, int], reason: str
) -> None:
    assert reason in LAYOUTS[layout].refusal(encoding, shape)


def test_layouts_of_one_encoding_refuse_two() -> None:
    names = Names({"a": IntegerEncoding(4), "b": IntegerEncoding(8)}, ())
    with pytest.raises(InputError, match="holds one encoding, not"):
        LAYOUTS["gptq"].files(names)
    groups = LAYOUTS["compressed-tensors"].files(names)["quantization_config"]["config_groups"]
    assert [group["targets"] for group in groups.values()] == [["a"], ["b"]]


def test_columns_out_of_order_are_refused() -> None:
    encoding, shape = IntegerEncoding(4, True, 32), (32, 64)
    tensors = LAYOUTS["gptq"].pack(encoding, shape, codes_of(encoding, shape))
    tensors["g_idx"] = tensors["g_idx"][::-1].copy()
    with pytest.raises(InputError, match="desc_act"):
        LAYOUTS["gptq"].unpack(encoding, shape, tensors)


def test_text_knows_the_recipe_before_any_layout_is_read() -> None:
    code = (
        "import sys, irlab.text; from irlab.weights import Recipe; "
        "print('unpack' in Recipe.registry, 'irlab.layouts' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["True", "False"]
