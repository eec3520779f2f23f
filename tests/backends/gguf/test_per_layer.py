"""Decoders whose layers differ, or were taken out: written for an architecture that has such layers, or refused."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from small_llama import Llama

import irlab
from irlab.backends.gguf import GGUF
from irlab.backends.gguf.anatomy import dissect
from irlab.encodings import IntegerEncoding
from irlab.errors import InputError, LegalityError
from irlab.types import f16

WIDTHS = {"heads": (4, 3, 2), "kv_heads": (2, 1, 2), "ffn": (96, 64, 33)}

PRUNED = {
    # Alike in all layers: the architecture that the model had.
    "alike": (Llama(layers=3, heads=3, kv_heads=1, ffn=40), "llama"),
    "alike, normed": (Llama(layers=3, heads=3, kv_heads=1, qk_norm=True), "qwen3"),
    # llama.cpp's qwen2 reads queries as wide as the model.
    "full heads, biased": (Llama(layers=3, bias=True), "qwen2"),
    "fewer heads, biased": (Llama(layers=3, heads=3, kv_heads=1, bias=True), "llama"),
    "widths": (Llama(layers=3, ffn=(96, 64, 33)), "deci"),
    "key/value heads": (Llama(layers=3, kv_heads=(2, 4, 1)), "deci"),
    "heads and widths": (Llama(layers=3, **WIDTHS), "deci"),
    "biased": (Llama(layers=3, **WIDTHS, bias=True), "deci"),
    "tied": (Llama(layers=3, **WIDTHS, tied=True), "deci"),
    "half": (Llama(layers=3, **WIDTHS, dtype="f16"), "deci"),
    "normed and tied": (Llama(layers=3, **WIDTHS, tied=True, qk_norm=True), "openelm"),
    "no attention": (Llama(layers=3, heads=(4, 0, 4), kv_heads=(2, 0, 2)), "deci"),
    "no first attention": (Llama(layers=3, heads=(0, 4, 4), kv_heads=(0, 2, 2)), "deci"),
    "no last attention": (Llama(layers=3, heads=(4, 4, 0), kv_heads=(2, 2, 0)), "deci"),
    "no feed-forward": (Llama(layers=3, ffn=(96, 0, 96)), "deci"),
    "no last feed-forward": (Llama(layers=3, ffn=(96, 96, 0)), "deci"),
    "normed, with holes": (
        Llama(layers=4, heads=(0, 3, 2, 0), kv_heads=(0, 1, 2, 0), ffn=(9, 64, 0, 20), tied=True, qk_norm=True),
        "openelm",
    ),
}


@pytest.mark.parametrize("kind", PRUNED)
def test_pruned_decoders_run_in_llama_cpp(kind, tmp_path):
    model, architecture = PRUNED[kind]
    emitted = irlab.emit(model.module(), "gguf", tmp_path / "m.gguf", parity=True)
    assert emitted.parity.max_abs_logit_diff < (1e-4 if model.dtype == "f32" else 1e-3)
    assert emitted.parity.greedy_equal
    keys = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert keys["general.architecture"].contents() == architecture
    said = any(f"written as architecture '{architecture}'" in note for note in emitted.notes)
    assert said == (architecture in ("deci", "openelm"))


def test_widths_are_arrays_where_layers_differ(tmp_path):
    irlab.emit(PRUNED["heads and widths"][0].module(), "gguf", tmp_path / "m.gguf", parity=False)
    keys = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert keys["deci.attention.head_count"].contents() == [4, 3, 2]
    assert keys["deci.attention.head_count_kv"].contents() == [2, 1, 2]
    assert keys["deci.feed_forward_length"].contents() == [96, 64, 33]
    assert keys["deci.rope.dimension_count"].contents() == keys["deci.attention.key_length"].contents() == 16


def test_no_layer_is_left_without_neurons(tmp_path):
    """llama.cpp leaves out the attention of a layer with n_ff = 0, and aborts if it is the last."""
    emitted = irlab.emit(PRUNED["no last feed-forward"][0].module(), "gguf", tmp_path / "m.gguf", parity=False)
    file = gguf.GGUFReader(tmp_path / "m.gguf")
    assert file.fields["deci.feed_forward_length"].contents() == [96, 96, 1]
    down = next(t for t in file.tensors if t.name == "blk.2.ffn_down.weight")
    assert not np.any(down.data)
    assert "layer 2 has no feed-forward block: written as one neuron of zeros" in emitted.notes


WIDE = {"heads": (4, 2, 3), "kv_heads": (2, 1, 1), "head_dim": 256, "hidden": 256, "ffn": (512, 256, 768), "gain": 0.25}


@pytest.mark.parametrize("type", ["q8_0", "q4_0", "q4_k_m", "q6_k"])
@pytest.mark.parametrize("normed", [False, True], ids=["deci", "openelm"])
def test_types_of_blocks_hold_where_widths_are_whole_blocks(type, normed, tmp_path):
    model = Llama(layers=3, **WIDE, tied=True, qk_norm=normed)
    emitted = irlab.emit(model.module(), "gguf", tmp_path / "m.gguf", parity=True, type=type)
    assert emitted.parity.kl < 1e-3
    assert not any("are not whole blocks" in note for note in emitted.notes)
    stored = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    expected = {"q4_k_m": "Q4_K"}.get(type, type.upper())
    assert stored["blk.1.ffn_up.weight"] == expected and stored["blk.1.attn_output.weight"] == expected
    assert ("blk.1.attn_qkv.weight" in stored) == normed


def test_widths_that_are_no_whole_blocks_are_refused(tmp_path):
    model = Llama(layers=2, hidden=256, head_dim=64, ffn=(512, 320))
    with pytest.raises(InputError, match=r"blk\.1\.ffn_down\.weight: 320 columns are not whole blocks of Q4_K"):
        irlab.emit(model.module(), "gguf", tmp_path / "m.gguf", type="q4_k_s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("normed", [False, True], ids=["deci", "openelm"])
def test_codes_of_a_pass_are_kept(normed, tmp_path):
    widths = {"heads": (4, 2, 2), "kv_heads": (2, 2, 1), "ffn": (96, 64, 32)}
    int4 = IntegerEncoding(4, True, 32, f16)
    module = Llama(layers=3, **widths, tied=True, qk_norm=normed, gain=1.0, encoding=int4).module()
    emitted = irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=True)
    assert emitted.parity.kl < 1e-3
    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    up = stored["blk.1.ffn_up.weight"]
    assert up.tensor_type.name == "Q4_0"
    decoded = gguf.dequantize(up.data, up.tensor_type)
    np.testing.assert_array_equal(decoded, module.weights["model.layers.1.up"].recipe.read())


def test_one_tensor_has_one_type(tmp_path):
    module = Llama(layers=2, ffn=(96, 64), tied=True, qk_norm=True).module()
    module = irlab.run(module, 'quantize{scheme=int8}@"*.q"{scheme=int4}')
    with pytest.raises(LegalityError, match=r"blk\.0\.attn_q\.weight.* were encoded differently"):
        irlab.emit(module, "gguf", tmp_path / "m.gguf")


REFUSED = {
    "head sizes": (Llama(layers=2, head_dim=(16, 32)), "layer 1's heads have 32 features and layer 0's 16"),
    "normed, not tied": (
        Llama(layers=3, **WIDTHS, qk_norm=True),
        "layer 1 has 3 heads where layer 0 has 4.*nearest is 'openelm', but its head is the embedding table",
    ),
    "normed and biased": (
        Llama(layers=3, **WIDTHS, qk_norm=True, tied=True, bias=True),
        "nearest is 'openelm', but it has no q bias, and layer 0 does",
    ),
    "without rope": (Llama(layers=3, **WIDTHS, rope=False), "nearest is 'deci', but it turns queries and keys"),
    "no attention at all": (Llama(layers=2, heads=0), "none of its layers attends"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_architecture_holds_is_refused_before_work(kind, tmp_path):
    model, reason = REFUSED[kind]
    with pytest.raises(LegalityError, match=reason):
        irlab.emit(model.module(), "gguf", tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
    row = GGUF().plan(model.module())[0]
    assert row.holding == "none" and "--emit onnx" in row.note


def test_the_plan_says_a_stand_in_is_taken_and_why():
    row, *_ = GGUF().plan(PRUNED["heads and widths"][0].module())
    assert row.holding == "special"
    assert row.note == "architecture 'deci': layer 1 has 3 heads where layer 0 has 4"
    rows = GGUF().plan(PRUNED["no last feed-forward"][0].module())
    assert any(row.holding == "emulated" and "layer 2 has no feed-forward block" in row.note for row in rows)


def test_neighbouring_rotary_pairs_turn_the_norms_of_queries_and_keys(tmp_path):
    from irlab import nn

    module = Llama(qk_norm=True, tied=True).module()
    for op in module.graph.find(nn.Rope):
        module.graph.replace(op, op.rebuild(op.operands, interleaved=True).result)
    emitted = irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=True)
    assert emitted.parity.max_abs_logit_diff < 1e-4


def test_a_decoder_without_layers_is_refused() -> None:
    module = Llama(layers=0).module()
    with pytest.raises(LegalityError, match="this one has no layers"):
        dissect(module)
    (row,) = GGUF().plan(module)
    assert row.holding == "none"
