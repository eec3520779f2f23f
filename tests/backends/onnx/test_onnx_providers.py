"""Files for each execution provider: what they are made of, what would fall back, and where they were run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_files import op_types, run_directory, write
from small_llama import Llama

import irlab.backends.onnx
from irlab import GraphBuilder, evaluate
from irlab.backends.onnx import ONNX
from irlab.backends.onnx.kernels import kernels, refusal
from irlab.backends.onnx.placement import fallbacks
from irlab.backends.onnx.providers import PROVIDERS
from irlab.backends.onnx.runtime import OnnxRuntime
from irlab.decoder import greedy, logits
from irlab.encodings import IntegerEncoding
from irlab.errors import InputError, LegalityError, UsageError
from irlab.ir import Module
from irlab.ops import nn, prim
from irlab.passmgr import Context
from irlab.types import f16, f32, tensor
from irlab.weights import Encode, Random, WeightSymbol
from tools.kernel_registry import lines

PROMPT = [3, 7, 9, 20, 4, 30]
INT4 = IntegerEncoding(4, True, 32, f16)
CONTRIB = {"GroupQueryAttention", "MatMulNBits", "GatherBlockQuantized", "FusedMatMul", "DynamicQuantizeMatMul"}


def small(**changes: Any) -> Module:
    return Llama(**{"hidden": 64, "ffn": 96, "encoding": INT4, **changes}).module()


def model_of(directory: Path) -> onnx.ModelProto:
    return onnx.load(directory / "model.onnx", load_external_data=False)


MADE_OF: dict[str, tuple[set[str], set[str]]] = {
    "wasm": ({"GroupQueryAttention", "DequantizeLinear", "RMSNormalization"}, {"MatMulNBits", "GatherBlockQuantized"}),
    "cuda": ({"GroupQueryAttention", "MatMulNBits", "RMSNormalization"}, set()),
    "directml": (
        {"GroupQueryAttention", "MatMulNBits", "SimplifiedLayerNormalization", "RotaryEmbedding"},
        {"GatherBlockQuantized", "RMSNormalization", "Attention", "Cos"},
    ),
    "webgpu": ({"GroupQueryAttention", "MatMulNBits", "RMSNormalization", "RotaryEmbedding"}, {"FusedMatMul", "Cos"}),
    "coreml": ({"MatMul", "ReduceMean"}, CONTRIB | {"RMSNormalization", "Attention", "DequantizeLinear"}),
    "openvino": ({"DequantizeLinear", "Attention", "RMSNormalization"}, CONTRIB),
    "qnn": (
        {"MatMulNBits", "RMSNormalization", "Softmax"},
        {"GroupQueryAttention", "GatherBlockQuantized", "Attention"},
    ),
    "tensorrt": ({"DequantizeLinear", "RMSNormalization", "Softmax"}, CONTRIB | {"Attention"}),
}
"""What files of an int4 decoder hold for each provider, and what they must not."""


@pytest.mark.parametrize("ep", MADE_OF)
def test_files_are_made_of_what_the_provider_takes(ep: str, tmp_path: Path) -> None:
    legal = write(small(dtype="bf16"), tmp_path / "out", ep=ep)
    found = op_types(tmp_path / "out")
    wanted, unwanted = MADE_OF[ep]
    assert wanted <= found and not unwanted & found
    model = model_of(tmp_path / "out")
    assert {o.domain: o.version for o in model.opset_import}[""] == PROVIDERS[ep].opset
    # Whatever the provider leaves to the CPU, the CPU has.
    assert not fallbacks(model, PROVIDERS["cpu"])
    runtime = OnnxRuntime(ep)
    # ONNX Runtime rounds activations to 8 bits where accuracy_level says so.
    np.testing.assert_allclose(runtime.logits(tmp_path / "out", [PROMPT])[0], logits(legal, PROMPT), atol=0.05)
    assert runtime.greedy(tmp_path / "out", PROMPT, 6) == greedy(legal, PROMPT, 6)


def test_the_name_of_a_runtime_says_what_was_not_run() -> None:
    assert OnnxRuntime("cpu").name == OnnxRuntime("wasm").name == "onnxruntime"
    assert OnnxRuntime("cuda").name == "onnxruntime's CPU provider (not run on CUDAExecutionProvider)"


@pytest.mark.parametrize("ep", ["cuda", "directml", "webgpu"])
def test_little_falls_back_from_gpus(ep: str, tmp_path: Path) -> None:
    """Lengths are computed on the CPU, where the op wants them; nothing that computes on activations is."""
    write(small(dtype="bf16"), tmp_path / "out", ep=ep)
    left = fallbacks(model_of(tmp_path / "out"), PROVIDERS[ep])
    assert {op for op, _ in left} <= {"Cast", "ReduceSum", "Sub", "Shape", "Squeeze"}


def test_tables_choose_by_dtype(tmp_path: Path) -> None:
    """CUDA has GroupQueryAttention in half only."""
    write(small(encoding=None), tmp_path / "f32", ep="cuda")
    assert "GroupQueryAttention" not in op_types(tmp_path / "f32") and "Attention" in op_types(tmp_path / "f32")
    write(small(encoding=None), tmp_path / "f16", ep="cuda", precision="fp16")
    assert "GroupQueryAttention" in op_types(tmp_path / "f16")
    config = json.loads((tmp_path / "f16" / "genai_config.json").read_text())
    assert config["model"]["decoder"]["session_options"]["provider_options"] == [{"cuda": {}}]


def test_a_kernel_holds_versions_and_types() -> None:
    cuda, directml = kernels("cuda"), kernels("directml")
    assert refusal(cuda, "Reshape", "", 23, {0: "f32"}) == "" and refusal(directml, "Reshape", "", 21, {0: "f32"}) == ""
    assert refusal(directml, "Reshape", "", 23, {0: "f32"}) == "no kernel of its version in opset 23"
    assert refusal(cuda, "GroupQueryAttention", "com.microsoft", 1, {0: "f32"}) == "no kernel for f32"
    assert refusal(cuda, "Gather", "", 13, {0: "f16", 1: "i64"}) == ""
    assert refusal(cuda, "Gather", "", 13, {0: "f16", 1: "u8"}) == "no kernel for u8 in operand 1"
    assert refusal(cuda, "Concat", "", 13, {5: "i4"}) == "no kernel for i4 in operand 5"
    assert refusal(cuda, "Cast", "", 23, {0: "f16"}, "bool") == ""
    assert refusal(cuda, "Cast", "", 23, {0: "f16"}, "i4") == "no kernel that gives i4"
    assert refusal(cuda, "BitShift", "", 11, {0: "u8"}) == "no kernel"


@pytest.mark.parametrize("table", sorted({provider.table for provider in PROVIDERS.values()}))
def test_a_table_is_read_and_written_alike(table: str) -> None:
    text = (Path(irlab.backends.onnx.__file__).parent / "tables" / f"{table}.txt").read_text("utf-8")
    read = [line for line in text.splitlines() if not line.startswith("#")]
    assert text.startswith("# ") and read
    if table in ("cuda", "directml"):
        assert list(lines(kernels(table))) == read, "by tools/kernel_registry.py, sorted by op"
    ops = [op for line in read for op in line.split(" ")[0].split(",")]
    assert set(ops) == set(kernels(table))


def test_the_plan_names_the_nodes_that_fall_back() -> None:
    module = small(dtype="bf16")
    rows = {row.what: row for row in ONNX(ep="webgpu").plan(module)}
    assert rows["nn.rope x 4"].note == "RotaryEmbedding"
    assert rows["ep=webgpu"].note == PROVIDERS["webgpu"].checked
    fallen = [row for row in rows.values() if row.note.startswith("falls back to the CPU: no kernel for i64")]
    assert {row.what.split(" x ")[0] for row in fallen} >= {"ReduceSum", "Sub"}
    rows = {row.what: row for row in ONNX(ep="qnn").plan(module)}
    assert rows["shapes"].note == "batch, past, seq must be known: fixed=batch:1,past:1,seq:1"
    assert rows["ep=qnn"].holding == "native" and rows["ep=qnn"].note == PROVIDERS["qnn"].checked
    assert rows[str(INT4)].note == "MatMulNBits, the same codes"
    rows = {row.what: row for row in ONNX(ep="coreml").plan(module)}
    assert rows["ep=coreml"].holding == "special" and "not run on hardware here" in rows["ep=coreml"].note
    assert rows[str(INT4)].note == "stored decoded: no smaller than floats"


def test_products_of_integers_are_taken_in_any_dtype_of_the_module() -> None:
    takes = {ep: PROVIDERS[ep].takes("ms:MatMulIntegerToFloat", f32) for ep in ("cpu", "cuda", "directml")}
    assert takes == {"cpu": True, "cuda": False, "directml": True}
    assert PROVIDERS["cuda"].takes("MatMulInteger", f16) and not PROVIDERS["cuda"].takes("DynamicQuantizeLinear", f32)


def test_core_ml_wants_bounds_in_the_file_and_few_axes(tmp_path: Path) -> None:
    coreml = kernels("coreml")
    assert refusal(coreml, "Slice", "", 13, {0: "f32", 1: "i64"}) == "no kernel for a computed operand 1"
    assert refusal(coreml, "Slice", "", 13, {0: "f32", 1: "i64"}, stored={1}) == ""
    assert refusal(coreml, "Where", "", 16, {0: "bool", 1: "i64", 2: "i64"}) == "no kernel for i64 in operand 1"
    for axes, reasons in ((5, set()), (6, {("Add", "no kernel for 6 axes")})):
        b = GraphBuilder()
        x = b.input("x", "f32", (2,) * axes)
        b.output(y=prim.add(x, x))
        write(b.module(), tmp_path / str(axes), ep="coreml")
        assert set(fallbacks(model_of(tmp_path / str(axes)), PROVIDERS["coreml"])) == reasons


def test_a_plan_of_what_cannot_be_written_says_so() -> None:
    b = GraphBuilder()
    x = b.input("x", "f8e4m3", ("n", 4))
    b.output(y=prim.add(x, x))
    rows = ONNX().plan(b.module())
    assert rows[-1].holding == "none" and "no kernel for f8e4m3, nor one of the CPU: cast" in rows[-1].note


def test_sizes_can_be_fixed(tmp_path: Path) -> None:
    legal = write(small(encoding=None), tmp_path / "out", ep="qnn", fixed=("batch:1", "seq:6", "past:2"))
    model = model_of(tmp_path / "out")
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert shapes["input_ids"] == [1, 6] and shapes["attention_mask"] == [1, 8]
    assert all(all(shape) for shape in shapes.values())
    assert "Shape" not in op_types(tmp_path / "out")
    rng = np.random.default_rng(0)
    feed = {
        v.name: rng.standard_normal(v.type.shape).astype(np.float32) for v in legal.graph.inputs if v.type.dtype is f32
    }
    feed |= {"input_ids": np.array([PROMPT]), "attention_mask": np.ones((1, 8), np.int64)}
    feed["position_ids"] = np.arange(2, 8)[None]
    found = run_directory(tmp_path / "out", feed)
    for name, expected in evaluate(legal, feed).items():
        np.testing.assert_allclose(found[name], expected.numpy(), atol=2e-5, err_msg=name)
    assert (
        ONNX(fixed=("seq:6",))
        .runtime()
        .unavailable()
        .startswith("its sizes are fixed, and GroupQueryAttention takes no")
    )
    with pytest.raises(UsageError, match="'seq=6' fixes no size"):
        ONNX(fixed=("seq=6",))
    with pytest.raises(InputError, match=r"the model has no size 'sequ'.*did you mean 'seq'"):
        ONNX(fixed=("sequ:6",)).legalise(small(), Context())


@pytest.mark.parametrize("ep", ["tensorrt", "qnn", "coreml"])
@pytest.mark.parametrize("encoding", [IntegerEncoding(4, False, 32), IntegerEncoding(8, True, 0, f32)], ids=str)
def test_every_encoding_is_held_in_some_form(ep: str, encoding: IntegerEncoding, tmp_path: Path) -> None:
    """Zero points are taken off, blocks decoded, where a provider knows neither: the numbers stay."""
    module = small(encoding=encoding)
    legal = write(module, tmp_path / "out", ep=ep, precision="fp32")
    found = OnnxRuntime(ep).logits(tmp_path / "out", [PROMPT])[0]
    np.testing.assert_allclose(found, logits(legal, PROMPT), atol=0.02)
    np.testing.assert_allclose(logits(legal, PROMPT), logits(module, PROMPT), atol=1e-4)


def test_an_encoded_table_is_read_in_every_form(tmp_path: Path) -> None:
    for ep in ("directml", "tensorrt", "openvino", "webgpu"):
        b = GraphBuilder()
        table = WeightSymbol("table", Encode(Random(tensor(f32, (16, 64))), INT4))
        b.output(y=nn.embedding(b.input("ids", "i64", ("n",)), b.weight(table)))
        legal = write(b.module(), tmp_path / ep, ep=ep)
        ids = np.array([3, 0, 15])
        found = run_directory(tmp_path / ep, {"ids": ids})["y"]
        np.testing.assert_allclose(found, table.recipe.read()[ids], atol=1e-6, err_msg=ep)
        assert legal.weights


def test_options_that_contradict_the_provider_are_refused() -> None:
    with pytest.raises(UsageError, match="DynamicQuantizeMatMul, which webgpu has not"):
        ONNX(ep="webgpu", hybrid=True)
    with pytest.raises(LegalityError, match="layout=genai needs a decoder"):
        ONNX(ep="cuda", layout="genai").legalise(GraphBuilder().module(), Context())
