"""One set of codes: what `quantize` made decodes to the same numbers in GGUF, by gguf-py, in ONNX Runtime, and in the
network that a TensorRT engine is built from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
from tiny_models import tiny_model

import irlab
from irlab import GraphBuilder, Module, nn
from irlab.encodings import GGMLEncoding
from irlab.weights import WeightSymbol

MATRICES = {
    "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    "blk.1.attn_output.weight": "model.layers.1.self_attn.o_proj.weight",
    "blk.2.ffn_down.weight": "model.layers.2.mlp.down_proj.weight",
    "blk.2.ffn_gate.weight": "model.layers.2.mlp.gate_proj.weight",
}


def through_onnx_runtime(symbol: WeightSymbol, out: Path, profile: str) -> np.ndarray:
    """The numbers that ONNX Runtime sees in an encoded weight: a linear layer of it alone, fed the identity."""
    columns = symbol.type.shape[1]
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", int(columns)))
    b.output(y=nn.linear(x, b.weight(symbol)))
    irlab.emit(b.module(), "onnx", out, layout="plain", profile=profile)
    options = onnxruntime.SessionOptions()
    # Level 4 would round the identity to 8 bits; the codes are what is asked about.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    for node in (model := onnx.load(out / "model.onnx", load_external_data=False)).graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    onnx.save(model, out / "exact.onnx")
    session = onnxruntime.InferenceSession(out / "exact.onnx", options, providers=["CPUExecutionProvider"])
    product: np.ndarray = session.run(["y"], {"x": np.eye(int(columns), dtype=np.float32)})[0]
    return product.T


SCHEMES = {
    "int4": "Q4_0", "int5": "Q5_0", "int8": "Q8_0", "mxfp4": "MXFP4",
    "q4_0": "Q4_0", "q5_1": "Q5_1", "iq4_nl": "IQ4_NL", "iq4_xs": "IQ4_XS", "tq2_0": "TQ2_0",
    "q2_k": "Q2_K", "q3_k": "Q3_K", "q4_k": "Q4_K", "q5_k": "Q5_K", "q6_k": "Q6_K",
}  # fmt: skip
"""Schemes that GGUF holds code for code, and as which type."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Module:
    """A model whose matrices are whole blocks of 256."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    return irlab.run(irlab.load(tiny_model(tmp_path_factory.mktemp("model"), "qwen3", **sizes)), "fuse")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gguf_and_onnx_runtime_decode_the_same_numbers(wide: Module, scheme: str, tmp_path: Path) -> None:
    module = irlab.run(wide.clone(), f"quantize{{scheme={scheme}}}")
    irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=False)
    irlab.emit(module, "ir", tmp_path / "m.irlab", embed=True)
    stored = irlab.load(tmp_path / "m.irlab")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    profiles = ("fast", "portable") if scheme in ("int4", "int8", "mxfp4", "q3_k") else ("fast",)
    for number, (gguf_name, name) in enumerate(MATRICES.items()):
        tensor = tensors[gguf_name]
        assert tensor.tensor_type.name == SCHEMES[scheme]
        from_gguf = gguf.dequantize(tensor.data, tensor.tensor_type)
        for profile in profiles:
            from_onnx = through_onnx_runtime(module.weights[name], tmp_path / f"onnx{number}{profile}", profile)
            np.testing.assert_array_equal(from_gguf, from_onnx)
        np.testing.assert_array_equal(from_gguf, module.weights[name].recipe.read())
        np.testing.assert_array_equal(from_gguf, stored.weights[name].recipe.read())
        if isinstance(module.weights[name].type.encoding, GGMLEncoding):
            codes = module.weights[name].recipe.codes(0, len(from_gguf))
            np.testing.assert_array_equal(tensor.data, codes["blocks"])


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_the_network_of_tensorrt_decodes_the_same_numbers(scheme: str, tmp_path: Path) -> None:
    from irlab.backends.tensorrt import library
    from irlab.backends.tensorrt.evaluator import Evaluator
    from irlab.backends.tensorrt.network import lower
    from irlab.backends.tensorrt.profiles import Limits, Span

    if library.missing():
        pytest.skip(library.missing())
    module = irlab.load(tiny_model(tmp_path / "model", "qwen3"))
    module = irlab.run(module, f"fuse,quantize{{scheme={scheme} group=32}}")
    irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=False)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for gguf_name, name in MATRICES.items():
        symbol = module.weights[name]
        b = GraphBuilder()
        x = b.input("x", "f32", ("n", int(symbol.type.shape[1])))
        b.output(y=nn.linear(x, b.weight(symbol)))
        network = lower(b.module(), Limits(others={"n": Span(1, 8, 512)}).resolved(0))
        assert network.low_bit == {name: scheme}
        product = Evaluator(network).run({"x": np.eye(int(symbol.type.shape[1]), dtype=np.float32)})["y"]
        network.close()
        from_gguf = gguf.dequantize(tensors[gguf_name].data, tensors[gguf_name].tensor_type)
        np.testing.assert_array_equal(from_gguf, product.T)


def test_codes_survive_an_irlab_directory(tmp_path: Path) -> None:
    module = irlab.load(tiny_model(tmp_path / "model", "llama"))
    module = irlab.run(module, "fuse,quantize{scheme=int4 group=32}")
    irlab.emit(module, "ir", tmp_path / "m.irlab", embed=True)
    for child in (tmp_path / "model").iterdir():
        child.unlink()
    again = irlab.load(tmp_path / "m.irlab")
    name = "model.layers.1.mlp.up_proj.weight"
    irlab.emit(again, "gguf", tmp_path / "m.gguf", parity=False)
    tensor = next(t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "blk.1.ffn_up.weight")
    np.testing.assert_array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), again.weights[name].recipe.read())


@pytest.mark.parametrize("group", [32, 128])
def test_the_files_of_one_command_hold_the_same_codes(group: int, tmp_path: Path) -> None:
    """From the files alone: nibbles of GGUF's blocks, of MatMulNBits' operand, and the hash of TensorRT's constant.
    GGUF has no groups of 128: four of its blocks have one scale."""
    from irlab.backends.tensorrt import library

    if library.missing():
        pytest.skip(library.missing())
    module = irlab.run(irlab.load("demo"), f"fuse,quantize{{scheme=int4 group={group}}},kv-cache")
    outputs = {"m.gguf": "gguf", "onnx": "onnx", "trt": "tensorrt{targets=sm89}"}
    irlab.emit_all(module, {tmp_path / name: target for name, target in outputs.items()}, parity=False)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    graph = onnx.load(tmp_path / "onnx" / "model.onnx").graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    network = json.loads((tmp_path / "trt" / "network.json").read_text())
    hashes = {row["constant"]["sha256"] for row in network["layers"] if row.get("constant", {}).get("type") == "int4"}
    for gguf_name, name in DEMO_MATRICES.items():
        from_gguf = nibbles_of_q4_0(tensors[gguf_name].data)
        scales = scales_of_q4_0(tensors[gguf_name].data)
        onnx_scales = next(onnx.numpy_helper.to_array(t) for n, t in initializers.items() if n.startswith(f"{name}.sc"))
        np.testing.assert_array_equal(scales, np.repeat(onnx_scales.reshape(len(scales), -1), group // 32, axis=1))
        packed = onnx.numpy_helper.to_array(initializers[f"{name}.codes"])
        from_onnx = np.stack([packed & 15, packed >> 4], -1).reshape(from_gguf.shape)
        np.testing.assert_array_equal(from_gguf, from_onnx)
        signed = (from_gguf.astype(np.int8) - 8).view(np.uint8)
        as_tensorrt = (signed[:, 0::2] & 15) | (signed[:, 1::2] << 4)
        assert hashlib.sha256(as_tensorrt.tobytes()).hexdigest()[:16] in hashes


DEMO_MATRICES = {
    "blk.0.attn_output.weight": "model.layers.0.self_attn.o_proj.weight",
    "blk.1.ffn_gate.weight": "model.layers.1.mlp.gate_proj.weight",
    "blk.3.ffn_down.weight": "model.layers.3.mlp.down_proj.weight",
}


def nibbles_of_q4_0(blocks: np.ndarray) -> np.ndarray:
    """Rows of Q4_0 blocks (a 2-byte scale, 16 bytes whose low halves are the first 16 codes) -> u8[rows, columns]."""
    codes = blocks.reshape(len(blocks), -1, 18)[:, :, 2:]
    return np.concatenate([codes & 15, codes >> 4], -1).reshape(len(blocks), -1)


def scales_of_q4_0(blocks: np.ndarray) -> np.ndarray:
    """Rows of Q4_0 blocks -> f32[rows, blocks], their scales."""
    scales = np.ascontiguousarray(blocks.reshape(len(blocks), -1, 18)[:, :, :2])
    return scales.view(np.float16)[:, :, 0].astype(np.float32)
