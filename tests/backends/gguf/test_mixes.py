"""Mixes of GGML types, against files that llama.cpp's own quantiser made."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from irlab.backends.gguf import ggml
from irlab.backends.gguf.mixes import ModelShape, file_type, plan_types
from irlab.errors import InputError, UsageError

FLOAT_TYPES = ["f16", "bf16", "f32"]
BLOCK_TYPES = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"]
K_TYPES = ["q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "iq4_xs"]
ALL_TYPES = FLOAT_TYPES + BLOCK_TYPES + K_TYPES
SLOW_TYPES = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("iq4_nl", "iq4_xs")]


def shape_of(model) -> ModelShape:
    return ModelShape(model.arch, model.layers, model.heads, model.kv_heads, model.experts)


def compare(model, kind, tmp_path, llama_quantize, imatrix=None, **options):
    """Every tensor of our file against llama.cpp's: type and bytes."""
    tensors = model.write(tmp_path / "f32.gguf")
    llama_quantize(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", file_type(kind).id, imatrix)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "theirs.gguf").tensors}
    plan = plan_types(kind, model.shapes(), shape_of(model), imatrix=bool(imatrix), **options)
    assert {name: type_.name for name, type_ in plan.types.items()} == {
        name: tensor.tensor_type.name for name, tensor in theirs.items()
    }
    for name, values in tensors.items():
        ours = ggml.quantize(values, plan.types[name], (imatrix or {}).get(name), jobs=2)
        assert ours.tobytes() == theirs[name].data.tobytes(), name
    return plan


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", [kind for kind in ALL_TYPES if "iq" not in kind] + SLOW_TYPES)
def test_every_tensor_equals_llama_cpp(kind, tied, tiny_llama, tmp_path, llama_quantize):
    compare(tiny_llama(tied=tied), kind, tmp_path, llama_quantize)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q2_k", "q3_k_m", "q3_k_l", "q4_k_m", "q5_k_m", *SLOW_TYPES])
def test_eight_experts_equal_llama_cpp(kind, tiny_llama, tmp_path, llama_quantize):
    model = tiny_llama(experts=8, ffn=256, kv_heads=2, layers=4, vocab=32)
    compare(model, kind, tmp_path, llama_quantize)


@pytest.mark.parametrize("kind", ["q4_k_m", "q4_0", *SLOW_TYPES])
def test_four_experts_count_layers_by_name(kind, tiny_llama, tmp_path, llama_quantize):
    compare(tiny_llama(experts=4, ffn=256, layers=9, vocab=32), kind, tmp_path, llama_quantize)


@pytest.mark.parametrize("kind", ["q4_0", "q5_0", "q4_k_m", "q3_k_m", *SLOW_TYPES])
def test_importances_change_types_and_bytes_as_in_llama_cpp(kind, tiny_llama, tmp_path, llama_quantize):
    model = tiny_llama(layers=16, ffn=256, kv_heads=2)
    rng = np.random.default_rng(1)
    imatrix = {
        name: rng.uniform(0.1, 4, shape[-1]).astype(np.float32)
        for name, shape in model.shapes().items()
        if "blk" in name
    }
    compare(model, kind, tmp_path, llama_quantize, imatrix)


@pytest.mark.parametrize("kind", K_TYPES + ["q4_0"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_accepted_fallbacks_are_those_of_llama_cpp(kind, tied, tiny_llama, tmp_path, llama_quantize):
    model = tiny_llama(hidden=288, ffn=768, heads=6, kv_heads=6, layers=2, tied=tied)
    plan = compare(model, kind, tmp_path, llama_quantize, allow_fallback=True)
    assert plan.fallbacks


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["q3_k_s", "q4_k_m", "q4_k_s", "q2_k"])
@pytest.mark.parametrize("arch", ["llama", "deci"])
def test_eighty_layers_count_as_70b(kind, arch, tiny_llama, tmp_path, llama_quantize):
    compare(tiny_llama(layers=80, ffn=256, kv_heads=2, vocab=32, arch=arch), kind, tmp_path, llama_quantize)


def test_a_row_that_does_not_fit_is_an_error_that_says_what_to_do(tiny_llama):
    model = tiny_llama(hidden=288, ffn=768, heads=6, kv_heads=6, layers=2)
    with pytest.raises(InputError) as caught:
        plan_types("Q4_K_M", model.shapes(), shape_of(model))
    message = str(caught.value)
    assert "output.weight: 288 columns are not whole blocks of Q6_K, stored as Q8_0" in message
    assert "more tensors" in message and "allow-fallback=true" in message


def test_the_plan_lists_each_fallback(tiny_llama):
    model = tiny_llama(hidden=288, ffn=768, heads=6, kv_heads=6, layers=1)
    plan = plan_types("q4_k_m", model.shapes(), shape_of(model), allow_fallback=True)
    assert [(f.tensor, f.wanted.name, f.used.name) for f in plan.fallbacks if "attn_q" in f.tensor] == [
        ("blk.0.attn_q.weight", "Q4_K", "Q5_0")
    ]
    assert all("ffn_down" not in fallback.tensor for fallback in plan.fallbacks)  # 768 columns fit


def test_rows_of_odd_width_end_as_f16(tiny_llama):
    shapes = {"blk.0.ffn_down.weight": (64, 172), "blk.0.attn_q.weight": (64, 64)}
    plan = plan_types("q8_0", shapes, ModelShape("llama", 1, 8, 4), allow_fallback=True)
    assert {name: type_.name for name, type_ in plan.types.items()} == {
        "blk.0.ffn_down.weight": "F16",
        "blk.0.attn_q.weight": "Q8_0",
    }


def test_overrides_stand_and_do_not_shift_the_others(tiny_llama):
    model = tiny_llama()
    plan = plan_types("q8_0", model.shapes(), shape_of(model), overrides={"blk.3.attn_q.weight": "q4_0"})
    assert plan.types["blk.3.attn_q.weight"].name == "Q4_0"
    assert plan.types["blk.4.attn_q.weight"].name == "Q8_0"


def test_an_encoded_weight_is_never_changed(tiny_llama):
    with pytest.raises(InputError, match=r"blk\.0\.w\.weight: 288 columns are not whole blocks of Q4_K"):
        plan_types(
            "q8_0",
            {"blk.0.w.weight": (4, 288)},
            ModelShape("llama", 1, 1, 1),
            overrides={"blk.0.w.weight": "q4_k"},
            allow_fallback=True,
        )


def test_aliases_and_unknown_names():
    assert file_type("Q4_K").name == "q4_k_m"
    assert file_type("q4_k_m").id == 15
    with pytest.raises(UsageError, match=r"unknown GGUF type 'q9_0'.*q4_k_m"):
        file_type("q9_0")
