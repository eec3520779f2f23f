"""Layouts of quantised checkpoints: what is packed is unpacked, bit by bit as the owners of the layouts pack it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irlab.encodings import TENSOR, Codes, Encoding, FloatEncoding, IntegerEncoding
from irlab.errors import InputError
from irlab.layouts import FORMS, LAYOUTS, Activation, Form, Names, Scheme
from irlab.types import bf16, f16, f32, i8, tensor

INTEGERS = [
    IntegerEncoding(bits, sym, group, f16) for bits in (2, 3, 4, 8) for sym in (True, False) for group in (0, 32)
]
NVFP4, FP8, FP8_TENSOR = (
    FloatEncoding("e2m1", 16, "e4m3"),
    FloatEncoding("e4m3", 0, "f32"),
    FloatEncoding("e4m3", TENSOR, "f32"),
)
INT8 = IntegerEncoding(8, True, 0, f32)
STATIC = {element: Activation(element, "tensor", True) for element in ("int8", "e4m3")}
BLOCKS = Activation("e2m1", "block", True)
TOKENS = {element: Activation(element, "token", False) for element in ("int8", "e4m3")}
HELD: list[tuple[str, Scheme]] = [
    *[
        ("compressed-tensors", Scheme(e))
        for e in (*INTEGERS, IntegerEncoding(5, False, 32, bf16), NVFP4, FP8, FP8_TENSOR)
    ],
    *[("compressed-tensors", Scheme(INT8, a)) for a in (STATIC["int8"], TOKENS["int8"])],
    *[("compressed-tensors", Scheme(e, a)) for e in (FP8, FP8_TENSOR) for a in (STATIC["e4m3"], TOKENS["e4m3"])],
    ("compressed-tensors", Scheme(IntegerEncoding(8, True, TENSOR, f32), STATIC["int8"])),
    ("compressed-tensors", Scheme(NVFP4, BLOCKS)),
    *[("gptq", Scheme(e)) for e in INTEGERS],
    *[("awq", Scheme(e)) for e in INTEGERS if e.bits == 4 and not e.symmetric],
    *[("modelopt", Scheme(e)) for e in (IntegerEncoding(4, True, 32), INT8, NVFP4)],
    ("modelopt", Scheme(INT8, STATIC["int8"])),
    ("modelopt", Scheme(FP8_TENSOR, STATIC["e4m3"])),
    ("modelopt", Scheme(FP8, TOKENS["e4m3"])),
    ("modelopt", Scheme(NVFP4, BLOCKS)),
]


def codes_of(encoding: Encoding, shape: tuple[int, int], seed: int = 0) -> Codes:
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return encoding.encode(weight)


def form_of(layout: str, encoding: Encoding) -> Form:
    return LAYOUTS[layout].form(Scheme(encoding))


@pytest.mark.parametrize("layout, scheme", HELD, ids=lambda v: str(v))
@given(rows=st.integers(1, 3), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_codes_come_back_from_the_tensors_of_a_layout(
    layout: str, scheme: Scheme, rows: int, groups: int, seed: int
) -> None:
    shape, encoding = (32 * rows, 32 * groups), scheme.encoding
    codes = codes_of(encoding, shape, seed)
    assert LAYOUTS[layout].refusal(scheme, shape) == ""
    form = LAYOUTS[layout].form(scheme)
    assert FORMS[form.name] is form
    tensors, types = form.pack(encoding, shape, codes), form.types(encoding, shape)
    assert tensors.keys() == types.keys()
    assert all(tensors[part].shape == kind.shape for part, kind in types.items())
    back = form.unpack(encoding, shape, tensors)
    assert back.keys() == codes.keys()
    for part, values in codes.items():
        assert back[part].dtype == values.dtype and np.array_equal(back[part].view(np.uint8), values.view(np.uint8))


@pytest.mark.parametrize("layout, scheme", [held for held in HELD if held[1].activation], ids=lambda v: str(v))
def test_a_checkpoint_says_of_itself_what_its_scheme_is(layout: str, scheme: Scheme) -> None:
    found, shape = LAYOUTS[layout], (32, 64)
    config = found.files(Names({"m": scheme, "n": scheme}, ["lm_head"]))["quantization_config"]
    stored = found.form(scheme).types(scheme.encoding, shape)
    assert config["quant_method"] == layout
    assert found.scheme(config, "m", stored) == scheme
    assert scheme.activation is not None
    scales = found.scale_tensors(scheme.activation, 0.375)
    if scheme.activation.static:
        assert all(value.dtype == np.float32 and value.size == 1 for value in scales.values())
        assert found.scale(scheme.activation, scales) == 0.375
    else:
        assert not scales


def test_rows_that_disagree_about_the_scale_of_their_tensor_are_refused() -> None:
    """As those of a matrix that was joined from two after both were encoded."""
    first, second = codes_of(NVFP4, (16, 32), 1), codes_of(NVFP4, (16, 32), 2)
    joined = {part: np.concatenate([first[part], second[part]]) for part in first}
    for layout in ("compressed-tensors", "modelopt"):
        with pytest.raises(InputError, match="different scales of the tensor"):
            form_of(layout, NVFP4).pack(NVFP4, (32, 32), joined)


def test_layouts_of_several_schemes_say_which_layer_has_which() -> None:
    schemes = {"a": Scheme(NVFP4, BLOCKS), "b": Scheme(FP8_TENSOR, STATIC["e4m3"]), "c": Scheme(NVFP4, BLOCKS)}
    files = LAYOUTS["modelopt"].files(Names(schemes, ["lm_head"]))
    said = files["hf_quant_config.json"]["quantization"]
    assert said["quant_algo"] == "MIXED_PRECISION"
    assert {name: layer["quant_algo"] for name, layer in said["quantized_layers"].items()} == {
        "a": "NVFP4",
        "b": "FP8",
        "c": "NVFP4",
    }
    for layout in ("modelopt", "compressed-tensors"):
        config = LAYOUTS[layout].files(Names(schemes, ["lm_head"]))["quantization_config"]
        assert [group["targets"] for group in config["config_groups"].values()] == [["a", "c"], ["b"]]
        for module, scheme in schemes.items():
            stored = LAYOUTS[layout].form(scheme).types(scheme.encoding, (32, 32))
            assert LAYOUTS[layout].scheme(config, module, stored) == scheme


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ({"num_bits": 4, "type": "int", "strategy": "token", "dynamic": True}, "activations to 4-bit int"),
        ({"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": False}, "activations to 8"),
        ({"num_bits": 8, "type": "float", "strategy": "block", "dynamic": False}, "strategy block"),
        ({"num_bits": "8"}, "is no int"),
    ],
)
def test_activations_that_the_ir_has_no_rounding_for_are_refused(arguments: dict[str, object], reason: str) -> None:
    layout, scheme = LAYOUTS["compressed-tensors"], Scheme(INT8, TOKENS["int8"])
    config = layout.files(Names({"m": scheme}, []))["quantization_config"]
    config["config_groups"]["group_0"]["input_activations"] = arguments
    with pytest.raises(InputError, match=reason):
        layout.scheme(config, "m", {"weight": tensor(i8, (8, 32)), "weight_scale": tensor(f32, (8, 1))})


def test_symmetric_codes_in_the_awq_layout_have_the_zero_point_8() -> None:
    symmetric, asymmetric = IntegerEncoding(4, True, 32), IntegerEncoding(4, False, 32)
    codes = codes_of(symmetric, (8, 32))
    tensors = form_of("awq", symmetric).pack(symmetric, (8, 32), codes)
    back = form_of("awq", asymmetric).unpack(asymmetric, (8, 32), tensors)
    assert (back["zeros"] == 8).all()
    assert np.array_equal(asymmetric.decode(back), symmetric.decode(codes))


def test_compressed_tensors_unpacks_what_is_packed() -> None:
    """By the package itself, where it is installed."""
    pytest.importorskip("compressed_tensors")
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    for encoding in (IntegerEncoding(4, True, 32), IntegerEncoding(3, False, 32), IntegerEncoding(8, True, 0)):
        codes = codes_of(encoding, (32, 64))
        tensors = form_of("compressed-tensors", encoding).pack(encoding, (32, 64), codes)
        found = unpack_from_int32(torch.from_numpy(tensors["weight_packed"]), encoding.bits, torch.Size((32, 64)))
        middle = 0 if encoding.symmetric else 1 << (encoding.bits - 1)
        assert np.array_equal(found.numpy().astype(int) + middle, codes["codes"].astype(int))


def test_gptq_packs_as_its_authors_do() -> None:
    """Word by word, by the loops of the first implementation: eight nibbles of a column, then of the zero points."""
    encoding, shape = IntegerEncoding(4, True, 32), (32, 64)
    codes = codes_of(encoding, shape)
    tensors = form_of("gptq", encoding).pack(encoding, shape, codes)
    raw = (codes["codes"].astype(np.int64) + 8).T
    words = sum(raw[i::8] << (4 * i) for i in range(8))
    assert np.array_equal(tensors["qweight"].view(np.uint32), words.astype(np.uint32))
    assert (tensors["qzeros"].view(np.uint32) == 0x77777777).all()
    assert np.array_equal(tensors["g_idx"], np.arange(64) // 32)


def test_awq_packs_as_its_authors_do() -> None:
    encoding, shape = IntegerEncoding(4, False, 32), (16, 32)
    codes = codes_of(encoding, shape)
    tensors = form_of("awq", encoding).pack(encoding, shape, codes)
    raw = codes["codes"].T.astype(np.int64)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    words = sum(raw[:, order[i] :: 8] << (4 * i) for i in range(8))
    assert np.array_equal(tensors["qweight"].view(np.uint32), words.astype(np.uint32))


def test_modelopt_packs_two_rows_to_a_byte() -> None:
    encoding, shape = IntegerEncoding(4, True, 32), (4, 32)
    codes = codes_of(encoding, shape)
    weight = form_of("modelopt", encoding).pack(encoding, shape, codes)["weight"]
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
        ("compressed-tensors", FloatEncoding("e2m1"), (32, 32), "holds NVFP4, FP8"),
        ("compressed-tensors", IntegerEncoding(4, True, TENSOR), (32, 32), "not one for the tensor"),
        ("compressed-tensors", Scheme(IntegerEncoding(4), TOKENS["int8"]), (32, 32), "read by activations that are"),
        ("compressed-tensors", Scheme(NVFP4, STATIC["e4m3"]), (32, 32), "read by activations that are"),
        ("modelopt", Scheme(INT8, TOKENS["int8"]), (32, 32), "static activations"),
        ("modelopt", Scheme(FP8), (32, 32), "static activations"),
        ("gptq", Scheme(IntegerEncoding(4), TOKENS["int8"]), (32, 32), "matrices alone"),
        ("compressed-tensors", IntegerEncoding(4, True, 32, i8), (32, 32), "not as i8"),
    ],
)
def test_what_a_layout_does_not_hold_is_said(
    layout: str, encoding: Encoding | Scheme, shape: tuple[int, int], reason: str
) -> None:
    scheme = encoding if isinstance(encoding, Scheme) else Scheme(encoding)
    assert reason in LAYOUTS[layout].refusal(scheme, shape)


def test_layouts_of_one_encoding_refuse_two() -> None:
    names = Names({"a": Scheme(IntegerEncoding(4)), "b": Scheme(IntegerEncoding(8))}, ())
    with pytest.raises(InputError, match="holds one encoding, not"):
        LAYOUTS["gptq"].files(names)
    groups = LAYOUTS["compressed-tensors"].files(names)["quantization_config"]["config_groups"]
    assert [group["targets"] for group in groups.values()] == [["a"], ["b"]]


def test_columns_out_of_order_are_refused() -> None:
    encoding, shape = IntegerEncoding(4, True, 32), (32, 64)
    tensors = form_of("gptq", encoding).pack(encoding, shape, codes_of(encoding, shape))
    tensors["g_idx"] = tensors["g_idx"][::-1].copy()
    with pytest.raises(InputError, match="desc_act"):
        form_of("gptq", encoding).unpack(encoding, shape, tensors)


def test_text_knows_the_recipe_before_any_layout_is_read() -> None:
    code = (
        "import sys, irlab.text; from irlab.weights import Recipe; "
        "print('unpack' in Recipe.registry, 'irlab.layouts' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["True", "False"]
