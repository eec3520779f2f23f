"""The same models to all nine providers: valid files, which the CPU runs to the same numbers. Where QNN's emulator is
installed, it takes the nodes that the plan says."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from convolutional import convolutional
from onnx_files import run_directory, write
from torch import nn

import irlab
from irlab.backends.onnx.placement import fallbacks
from irlab.backends.onnx.providers import PROVIDERS
from irlab.backends.onnx.runtime import OnnxRuntime
from irlab.backends.onnx.writer import MODEL_FILE
from irlab.ir import Module
from irlab.parity import check_parity
from tools import qnn_session

Inputs = dict[str, np.ndarray]
INT4 = "fuse,quantize{scheme=int4 group=32},kv-cache"


class Bert(nn.Module):
    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        self.bert = BertModel(BertConfig(vocab_size=96, **sizes), add_pooling_layer=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.bert(ids, attention_mask=mask).last_hidden_state
        return hidden


class Vit(nn.Module):
    def __init__(self) -> None:
        from transformers import ViTConfig, ViTModel

        super().__init__()
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        self.vit = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.vit(pixels).last_hidden_state
        return hidden


def bert(recipe: str) -> tuple[Module, Inputs]:
    torch.manual_seed(0)
    ids, mask = torch.randint(1, 96, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    mask[1, 9:] = 0
    sizes = {0: "batch", 1: "seq"}
    module = irlab.load(Bert().eval(), args=(ids, mask), dynamic_shapes=(sizes, sizes))
    return irlab.run(module, recipe), {"ids": ids.numpy(), "mask": mask.numpy()}


def vit(recipe: str) -> tuple[Module, Inputs]:
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 32, 32)
    module = irlab.load(Vit().eval(), args=(pixels,), dynamic_shapes=({0: "batch"},))
    return irlab.run(module, recipe), {"pixels": pixels.numpy()}


def cnn(recipe: str) -> tuple[Module, Inputs]:
    net, (x,) = convolutional()
    return irlab.run(irlab.load(net, args=(x,), dynamic_shapes=({0: "batch"},)), recipe), {"x": x.numpy()}


MODELS: dict[str, Callable[[], tuple[Module, Inputs]]] = {
    "bert": lambda: bert("fuse"),
    "bert-w8a8": lambda: bert("fuse,quantize-activations{embeddings=int8}"),
    "vit": lambda: vit("fuse"),
    "cnn": lambda: cnn("fuse"),
}


@cache
def model(name: str) -> tuple[Module, Inputs]:
    return MODELS[name]()


def fixed(module: Module, ep: str) -> tuple[str, ...]:
    """The sizes of the inputs above, for providers that want them."""
    symbols = {str(size) for value in module.graph.inputs for size in value.type.shape if not isinstance(size, int)}
    wanted = {"batch": "batch:2", "seq": "seq:12"}
    return tuple(wanted[name] for name in sorted(symbols)) if PROVIDERS[ep].static else ()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ep", PROVIDERS)
def test_models_reach_every_provider(ep: str, name: str, tmp_path: Path) -> None:
    module, feed = model(name)
    write(module, tmp_path / "out", ep=ep, fixed=fixed(module, ep))
    file = tmp_path / "out" / MODEL_FILE
    onnx.checker.check_model(str(file), full_check=True)
    written = onnx.load(file, load_external_data=False)
    assert not fallbacks(written, PROVIDERS["cpu"]), "what a provider leaves to the CPU, the CPU computes"
    found = run_directory(tmp_path / "out", feed)
    for output, expected in irlab.evaluate(module, feed).items():
        np.testing.assert_allclose(found[output], expected.numpy(), atol=0.05 if "w8a8" in name else 1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.skipif(not qnn_session.installed(), reason="onnxruntime-qnn is not installed")
def test_qnn_takes_what_the_plan_says(name: str, tmp_path: Path) -> None:
    module, feed = model(name)
    write(module, tmp_path / "out", ep="qnn", fixed=fixed(module, "qnn"))
    compare_with_qnn(tmp_path / "out", feed, irlab.evaluate(module, feed), atol=0.1)


@pytest.mark.skipif(not qnn_session.installed(), reason="onnxruntime-qnn is not installed")
def test_qnn_multiplies_four_bits(tmp_path: Path) -> None:
    module = irlab.run(irlab.load("demo"), INT4)
    legal = write(module, tmp_path / "out", ep="qnn", fixed=("batch:1", "seq:4", "past:8"))
    rng = np.random.default_rng(0)
    feed = {
        value.name or "": rng.standard_normal(value.type.shape).astype(np.float32)
        for value in legal.graph.inputs
        if value.type.dtype.is_float
    }
    feed |= {"input_ids": np.array([[5, 9, 2, 30]]), "attention_mask": np.array([[0, 0, *[1] * 10]])}
    feed["position_ids"] = np.arange(6, 10)[None]
    placed = compare_with_qnn(tmp_path / "out", feed, irlab.evaluate(legal, feed), atol=0.15)
    assert placed[qnn_session.NAME, "MatMulNBits"] == 28


def compare_with_qnn(
    directory: Path, feed: Inputs, expected: dict[str, torch.Tensor], atol: float
) -> dict[tuple[str, str], int]:
    """QNN computes what the interpreter does, and leaves to the CPU what the plan says."""
    session = qnn_session.session(directory / MODEL_FILE, optimized=False)
    for output, found in zip(session.get_outputs(), session.run(None, feed)):
        np.testing.assert_allclose(found, expected[output.name].numpy(), atol=atol, err_msg=output.name)
    placed = qnn_session.placements(session)
    left = {op for provider, op in placed if provider != qnn_session.NAME}
    written = onnx.load(directory / MODEL_FILE, load_external_data=False)
    assert left == {op for op, _ in fallbacks(written, PROVIDERS["qnn"])}
    return placed


@pytest.mark.parametrize("sizes", [("batch:1", "seq:1", "past:40"), ("batch:2", "seq:16", "past:50")], ids=str)
@pytest.mark.parametrize("ep", ["coreml", "qnn"])
def test_files_of_fixed_sizes_are_run_like_others(ep: str, sizes: tuple[str, ...], tmp_path: Path) -> None:
    """Prompts are padded to the width, caches to their slots, and the mask hides both: the tokens stay."""
    from irlab.backends.onnx import ONNX
    from irlab.decoder import greedy, logits

    module = irlab.run(irlab.load("demo"), "cast{dtype=f32},fuse,kv-cache")
    legal = write(module, tmp_path / "out", ep=ep, fixed=sizes, precision="fp32")
    prompt = [5, 9, 2, 30, 11, 7, 100, 3, 8]
    runtime = OnnxRuntime(ep, fixed=True)
    np.testing.assert_allclose(runtime.logits(tmp_path / "out", [prompt])[0], logits(module, prompt), atol=1e-3)
    assert greedy(legal, prompt, 8) == greedy(module, prompt, 8) == runtime.greedy(tmp_path / "out", prompt, 8)
    assert not check_parity(ONNX(ep=ep, fixed=sizes), legal, tmp_path / "out").failure
