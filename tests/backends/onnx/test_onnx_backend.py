"""The backend as a user meets it: options, plan, layouts, companions, errors, the real runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_files import op_types, write
from small_llama import Llama

from irlab import GraphBuilder
from irlab.backends.onnx import ONNX
from irlab.backends.onnx.runtime import OnnxRuntime
from irlab.decoder import greedy, logits
from irlab.encodings import IntegerEncoding
from irlab.errors import CheckError, InputError, LegalityError, UsageError
from irlab.ops import nn, prim
from irlab.parity import kl_divergence
from irlab.passmgr import Context
from irlab.types import f16, f32, tensor
from irlab.weights import Array, WeightSymbol

PROMPT = [3, 7, 9, 20, 4, 30]
WIDE = Llama(hidden=128, ffn=160, head_dim=32, vocab=64)
WIDE_BIASED = Llama(hidden=128, ffn=160, head_dim=32, vocab=64, bias=True)
INT4 = IntegerEncoding(4, True, 32, f16)


def config_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "genai_config.json").read_text())
    return found


@pytest.mark.parametrize("options", [{}, {"profile": "portable"}, {"layout": "plain"}], ids=str)
def test_the_real_runtime_gives_logits_and_greedy_tokens(options: dict[str, str], tmp_path: Path) -> None:
    module, runtime = Llama().module(), ONNX().runtime()
    module.metadata["config"]["eos_token_id"] = greedy(module, PROMPT, 4)[-1]  # an end of text stops nothing here
    assert not runtime.unavailable()
    write(module, tmp_path / "out", **options)
    for found, prompt in zip(runtime.logits(tmp_path / "out", [PROMPT, PROMPT[:2]]), [PROMPT, PROMPT[:2]]):
        np.testing.assert_allclose(found, logits(module, prompt), atol=2e-5)
    expected = greedy(module, PROMPT, 8)
    assert runtime.greedy(tmp_path / "out", PROMPT, 8) == expected
    assert (tmp_path / "out" / "genai_config.json").is_file() == ("layout" not in options)


def test_the_genai_configuration_is_made_from_the_graph(tmp_path: Path) -> None:
    module = Llama(layers=3, kv_heads=1).module()
    module.metadata["config"] |= {"eos_token_id": [7, 9999], "bos_token_id": 3}
    module.metadata["tokenizer"] = str(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    write(module, tmp_path / "fast")
    config = config_of(tmp_path / "fast")
    model, decoder = config["model"], config["model"]["decoder"]
    assert (model["vocab_size"], model["context_length"], model["eos_token_id"], model["bos_token_id"]) == (
        50,
        128,
        7,
        3,
    )
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (3, 1, 16)
    assert config["search"] == {"max_length": 128, "past_present_share_buffer": True}
    assert (tmp_path / "fast" / "tokenizer.json").read_text() == "{}"
    write(module, tmp_path / "portable", profile="portable", max_length=64)
    assert config_of(tmp_path / "portable")["search"] == {"max_length": 64, "past_present_share_buffer": False}


def test_portable_files_hold_standard_ops_only(tmp_path: Path) -> None:
    write(Llama(encoding=INT4, hidden=64, ffn=96).module(), tmp_path / "out", profile="portable")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 23)]
    assert {"Attention", "RotaryEmbedding", "RMSNormalization", "DequantizeLinear"} <= op_types(tmp_path / "out")


def test_names_come_from_the_model(tmp_path: Path) -> None:
    write(Llama().module(), tmp_path / "out")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    names = [node.name for node in model.graph.node]
    assert "/model/layers.1/GroupQueryAttention" in names
    assert len(names) == len(set(names))
    assert {"logits", "present.0.key", "present.1.value"} < {o.name for o in model.graph.output}
    dims_of = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert dims_of["attention_mask"] == ["batch", "past + seq"]


def test_two_files_of_one_module_are_equal(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(Llama(encoding=INT4, hidden=64, ffn=96).module(), tmp_path / name)
    for file in ("model.onnx", "model.onnx.data", "genai_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_hybrid_has_both_forms_and_follows_the_right_one(tmp_path: Path) -> None:
    module = Llama(hidden=128, ffn=160, head_dim=32, vocab=64, encoding=INT4, bias=True).module()
    legal = write(module, tmp_path / "out", hybrid=True)
    assert {"If", "DynamicQuantizeMatMul", "MatMulNBits"} <= op_types(tmp_path / "out")
    found = OnnxRuntime().logits(tmp_path / "out", [PROMPT, [5]])
    for got, prompt in zip(found, [PROMPT, [5]]):
        wanted = logits(legal, prompt)
        assert kl_divergence(wanted.astype(np.float64), got.astype(np.float64)).mean() < 1e-3
    # The forms differ: eight bits stay closer to the unencoded model than four.
    plain = logits(WIDE_BIASED.module(), PROMPT)
    assert np.abs(found[0] - plain).mean() < np.abs(logits(module, PROMPT) - plain).mean()


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_precision_encodes_what_is_not_encoded(precision: str, tmp_path: Path) -> None:
    legal = write(WIDE.module(), tmp_path / "out", precision=precision)
    assert {str(s.type.encoding).split(",")[0] for s in legal.weights.values() if s.type.encoding} == {f"q<{precision}"}
    found = OnnxRuntime().logits(tmp_path / "out", [PROMPT])[0]
    np.testing.assert_allclose(found, logits(legal, PROMPT), atol=0.05)


def test_bf16_becomes_f32_and_half_stays_half(tmp_path: Path) -> None:
    assert logits_type(write(Llama(dtype="bf16").module(), tmp_path / "bf16")) is f32
    assert logits_type(write(Llama(dtype="bf16").module(), tmp_path / "half", precision="fp16")) is f16
    backend = ONNX(precision="fp16")
    legal = backend.legalise(Llama().module(), Context())
    assert backend.float_tolerance(legal) == 5e-2
    assert ONNX().float_tolerance(ONNX().legalise(Llama().module(), Context())) == 1e-2


def logits_type(module: Any) -> Any:
    return module.graph.outputs["logits"].type.dtype


def test_plan_reads_no_weight_and_names_what_is_held() -> None:
    module = Llama(encoding=INT4).module()
    rows = {row.what: row for row in ONNX().plan(module)}
    assert rows["nn.attention x 2"].holding == "native" and "GroupQueryAttention" in rows["nn.attention x 2"].note
    assert rows[str(INT4)].note.startswith("MatMulNBits")
    assert rows["padding"].holding == "special"
    assert rows["nn.gated_mlp x 2"].holding == "emulated"
    bf16 = {row.what: row.holding for row in ONNX(profile="portable").plan(Llama(dtype="bf16").module())}
    assert bf16["bf16"] == "emulated" and "padding" not in bf16


def test_what_cannot_be_done_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'tpu' is unknown \(ep=cpu\|wasm\|cuda"):
        ONNX(ep="tpu")
    with pytest.raises(UsageError, match="hybrid=true"):
        ONNX(hybrid=True, profile="portable")
    b = GraphBuilder()
    b.output(logits=nn.silu(b.input("x", "f32", ("n", 4))))
    with pytest.raises(LegalityError, match="add kv-cache to the passes"):
        ONNX(layout="genai").legalise(b.module(), Context())


def test_an_input_that_genai_cannot_fill_keeps_the_plain_layout(tmp_path: Path) -> None:
    module = Llama().module()
    extra = module.graph.input("temperature", tensor(f32, ()))
    module.graph.set_outputs({**module.graph.outputs, "scaled": prim.div(module.graph.outputs["logits"], extra)})
    with pytest.raises(LegalityError, match="no value for the input 'temperature'"):
        ONNX(layout="genai").legalise(module.clone(), Context())
    write(module, tmp_path / "out")
    assert not (tmp_path / "out" / "genai_config.json").exists()


def test_a_weight_with_nan_is_refused_by_name(tmp_path: Path) -> None:
    b = GraphBuilder()
    bad = np.zeros((64, 64), np.float32)
    bad[3, 5] = np.nan
    w = b.weight(WeightSymbol("layer.weight", Array(tensor(f32, (64, 64)), bad)))
    b.output(y=nn.linear(b.input("x", "f32", ("n", 64)), w))
    with pytest.raises(InputError, match=r"'layer.weight' holds NaN at \[3, 5\]"):
        write(b.module(), tmp_path / "out")


def test_a_broken_file_is_reported_in_one_line(tmp_path: Path) -> None:
    write(Llama().module(), tmp_path / "out")
    (tmp_path / "out" / "model.onnx.data").write_bytes(b"short")
    with pytest.raises(CheckError) as caught:
        OnnxRuntime().logits(tmp_path / "out", [PROMPT])
    assert "\n" not in str(caught.value)
