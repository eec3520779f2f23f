"""A small random Llama as an f32 GGUF made by gguf-py, and llama.cpp's own quantiser to measure against."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_models import tiny_model

import irlab
from irlab.ir import Module

# The bench measures against the same quantiser.
sys.path.append(str(Path(__file__).resolve().parents[3] / "tools"))

import llama_quantizer
from npm_packages import npm_package


@dataclass(frozen=True)
class TinyLlama:
    hidden: int = 256
    ffn: int = 512
    layers: int = 9
    heads: int = 4
    kv_heads: int = 1
    vocab: int = 64
    experts: int = 0
    tied: bool = False
    arch: str = "llama"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        head = self.hidden // self.heads
        kv = self.kv_heads * head
        shapes = {"token_embd.weight": (self.vocab, self.hidden), "output_norm.weight": (self.hidden,)}
        if not self.tied:
            shapes["output.weight"] = (self.vocab, self.hidden)
        ffn_shape, suffix = (self.ffn, self.hidden), ""
        if self.experts:
            ffn_shape, suffix = (self.experts, self.ffn, self.hidden), "_exps"
        for layer in range(self.layers):
            block = {
                "attn_norm": (self.hidden,),
                "attn_q": (self.hidden, self.hidden),
                "attn_k": (kv, self.hidden),
                "attn_v": (kv, self.hidden),
                "attn_output": (self.hidden, self.hidden),
                "ffn_norm": (self.hidden,),
                f"ffn_gate{suffix}": ffn_shape,
                f"ffn_up{suffix}": ffn_shape,
                f"ffn_down{suffix}": (*ffn_shape[:-2], self.hidden, self.ffn),
            }
            if self.experts:
                block["ffn_gate_inp"] = (self.experts, self.hidden)
            shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
        return shapes

    def tensors(self, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)

        def draw(name, shape):
            values = rng.standard_normal(shape).astype(np.float32)
            return 1 + 0.1 * values if "norm" in name else values / np.float32(np.sqrt(shape[-1]))

        return {name: draw(name, shape) for name, shape in self.shapes().items()}

    def write(self, path: Path, seed: int = 0) -> dict[str, np.ndarray]:
        """Writes the model with a byte-sized vocabulary, and returns its tensors."""
        writer = gguf.GGUFWriter(path, self.arch)
        writer.add_block_count(self.layers)
        writer.add_context_length(512)
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.ffn)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(self.hidden // self.heads)
        writer.add_vocab_size(self.vocab)
        if self.experts:
            writer.add_expert_count(self.experts)
            writer.add_expert_used_count(2)
        writer.add_tokenizer_model("llama")
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        tokens += ["▁", *"etaoinshrdlu", "▁t", "he", "▁the"] + [f"w{i}" for i in range(self.vocab)]
        writer.add_token_list(tokens[: self.vocab])
        writer.add_token_scores([-float(i) for i in range(self.vocab)])
        types = [2, 3, 3] + [6] * 256 + [1] * self.vocab
        writer.add_token_types(types[: self.vocab])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        tensors = self.tensors(seed)
        for name, values in tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tensors


@pytest.fixture(scope="session")
def npm_folder():
    """A function from an npm package, such as "@scope/name@1.2.3", to where it lies; skips the test without npm."""

    def folder(spec: str) -> Path:
        try:
            return npm_package(spec)
        except LookupError as reason:
            pytest.skip(str(reason))

    return folder


@pytest.fixture(scope="session")
def llama_quantize():
    """A function `(source, target, file type number, imatrix)` that runs llama.cpp's `llama_model_quantize`."""
    try:
        folder = llama_quantizer.library_folder()
    except LookupError as reason:
        pytest.skip(str(reason))

    def run(source: Path, target: Path, file_type: int, imatrix: dict[str, np.ndarray] | None = None) -> None:
        file = target.with_suffix(".npz") if imatrix else None
        if imatrix:
            np.savez(target.with_suffix(".npz"), **imatrix)
        command = llama_quantizer.command(folder, source, target, file_type, file)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


@pytest.fixture
def tiny_llama():
    """The factory of small models: `tiny_llama(tied=True).write(path)`."""
    return TinyLlama


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Module]:
    """Tiny models by kind, fused; each caller gets a clone."""
    loaded: dict[str, Module] = {}

    def get(kind: str) -> Module:
        if kind not in loaded:
            directory = tiny_model(tmp_path_factory.mktemp(kind), kind)
            loaded[kind] = irlab.run(irlab.load(directory), "fuse")
        return loaded[kind].clone()

    return get
