"""quantize-cache: keys and values as codes, the same in the interpreter, with a cache, and in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import irlab
from irlab import Context, Module, nn
from irlab.decoder import greedy
from irlab.errors import InputError, LegalityError, UsageError
from irlab.passes.quantize import QuantizeCache
from irlab.passes.quantize.cache import least_error_scales
from irlab.weights import Array


@pytest.fixture(scope="module")
def module() -> Module:
    return irlab.run(irlab.load("demo"), "cast{dtype=f32},fuse")


def run(module: Module, pipeline: str, ids: np.ndarray) -> Module:
    return irlab.run(module, pipeline, calibration=ids, calibration_length=32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_scales_lose_no_more_than_the_largest_magnitude_would(bits: int, per_channel: bool) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_t(4, (4096, 12)).astype(np.float32) * rng.uniform(0.1, 9, 12).astype(np.float32)
    rows[:, 3] = 0
    half = 1 << (bits - 1)

    def lost(scale: np.ndarray) -> float:
        return float(np.square(np.clip(np.rint(rows / scale), -half, half - 1) * scale - rows).mean())

    found = least_error_scales(rows, bits, per_channel=per_channel)
    plain = np.abs(rows).max(0) if per_channel else np.abs(rows).max(keepdims=True)[0, :1]
    assert found.shape == plain.shape == ((12,) if per_channel else (1,)) and (found > 0).all()
    gain = 1.0 if bits == 8 else 0.8
    assert lost(found) <= gain * lost(np.where(plain > 0, plain, 1) / (half - 1))


@pytest.mark.parametrize(
    ("options", "kl"), [("", 1e-3), ("{per=tensor}", 1e-2), ("{scheme=int4}", 0.05), ("{scheme=int4 per=tensor}", 0.5)]
)
def test_the_cache_changes_nothing_more(module: Module, ids: np.ndarray, options: str, kl: float) -> None:
    new = run(module, f"quantize-cache{options}", ids)
    cached = irlab.run(new, "kv-cache")
    prompt = ids[0, :12].tolist()
    before, after, again = (irlab.evaluate(m, {"input_ids": [prompt]})["logits"][0] for m in (module, new, cached))
    assert float((after - again).abs().max()) < 1e-4
    p, q = torch.log_softmax(before, -1), torch.log_softmax(after, -1)
    assert 0 < float((p.exp() * (p - q)).sum(-1).mean()) < kl
    assert greedy(new, prompt, 8) == greedy(cached, prompt, 8)
    past = next(v for v in cached.graph.inputs if v.name == "past_key_values.0.key")
    heads, width = module.graph.find(nn.Attention)[0].k.type.shape[1::2]
    packed = width // 2 if "int4" in options else width
    assert str(past.type) == f"{'u8' if 'int4' in options else 'i8'}[batch, {heads}, past, {packed}]"
    scale = new.weights["model.layers.0.self_attn.k_scale"]
    assert isinstance(scale.recipe, Array) and scale.type.shape == ((1,) if "tensor" in options else (heads, 1, width))


@pytest.mark.parametrize("options", ["", "{scheme=int4}", "{per=tensor}"])
def test_onnx_runtime_reads_the_codes(module: Module, ids: np.ndarray, options: str, tmp_path: Path) -> None:
    import onnx

    new = run(module, f"quantize-cache{options},kv-cache", ids)
    emitted = irlab.emit(new, "onnx", tmp_path / "m", parity=True)
    assert emitted.parity.max_abs_logit_diff < 1e-3 and emitted.parity.greedy_equal
    graph = onnx.load(tmp_path / "m" / "model.onnx", load_external_data=False).graph
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    stated = {a.name: a.i or a.s.decode() for a in attentions[0].attribute if "quant" in a.name or "bit" in a.name}
    kind = "PER_TENSOR" if "tensor" in options else "PER_CHANNEL"
    bits = 4 if "int4" in options else 8
    assert len(attentions) == 4 and stated == {"k_quant_type": kind, "v_quant_type": kind, "kv_cache_bit_width": bits}
    held = {v.name: v.type.tensor_type.elem_type for v in graph.input}
    assert held["past_key_values.3.value"] == (onnx.TensorProto.UINT8 if bits == 4 else onnx.TensorProto.INT8)


def test_onnx_without_the_op_computes_the_same(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new = run(module, "quantize-cache,kv-cache", ids)
    emitted = irlab.emit(new, "onnx", tmp_path / "m", parity=True, profile="portable", layout="plain")
    assert emitted.parity.max_abs_logit_diff < 1e-3


def test_others_say_what_they_do(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new = run(module, "quantize-cache{scheme=int4},kv-cache", ids)
    for each in (new, run(module, "quantize-cache{scheme=int4}", ids)):
        legal = irlab.api.make_backend("gguf", {}).legalise(each.clone(), Context())
        assert any("--cache-type-k q4_0" in note for note in legal.metadata["notes"])
        assert not legal.graph.find(nn.DequantizeCache)
        prompt = {"input_ids": [ids[0, :12].tolist()]}
        expected, found = (irlab.evaluate(m, prompt)["logits"] for m in (module, legal))
        assert float((expected - found).abs().max()) < 1e-4
    with pytest.raises(LegalityError, match="cache_implementation"):
        irlab.emit(new, "hf", tmp_path / "hf")
    with pytest.raises(LegalityError, match="reads no caches of codes"):
        irlab.api.make_backend("tensorrt", {}).legalise(new.clone(), Context())


def test_text_keeps_it_and_a_plan_needs_no_data(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    new = run(module, "quantize-cache,kv-cache", ids)
    irlab.emit(new, "ir", tmp_path / "m.irlab")
    again = irlab.load(tmp_path / "m.irlab")
    assert len(again.graph.find(nn.DequantizeCache)) == 8
    irlab.emit(again, "onnx", tmp_path / "m", parity=True)
    rows = irlab.api.make_backend("onnx", {}).plan(again)
    assert any(row.holding == "native" and "inside GroupQueryAttention with a cache" in row.note for row in rows)
    rows = irlab.api.make_backend("gguf", {}).plan(again)
    assert any("--cache-type-k q8_0" in row.note for row in rows)
    planned = module.clone()
    QuantizeCache().run(planned, Context(is_plan=True))
    assert len(planned.graph.find(nn.QuantizeCache)) == 8


def test_what_cannot_be_done_is_refused(module: Module, ids: np.ndarray) -> None:
    with pytest.raises(InputError, match="calibration data is needed"):
        irlab.run(module, "quantize-cache")
    with pytest.raises(UsageError, match="quantize-cache cannot run after kv-cache: the cache would hold floats"):
        irlab.run(module, "kv-cache,quantize-cache")
    with pytest.raises(InputError, match="quantised already"):
        run(run(module, "quantize-cache", ids), "quantize-cache", ids)
    bare = irlab.GraphBuilder("bare")
    bare.output(y=nn.silu(bare.input("x", "f32", (4,))))
    with pytest.raises(InputError, match=r"has no nn.attention \(run fuse first"):
        irlab.run(bare.module(), "quantize-cache")
