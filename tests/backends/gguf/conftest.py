"""A small random Llama as an f32 GGUF made by gguf-py, and llama.cpp's own quantiser to measure against."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest

NODE_LLAMA = "@node-llama-cpp/linux-x64@3.22.1"


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


def cached_npm_package(spec: str, folder: str) -> Path:
    """The unpacked npm package `spec`, fetched once into the user's cache directory; skips the test without npm."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "irlab-tests" / folder
    if not cache.is_dir():
        if shutil.which("npm") is None:
            pytest.skip(f"npm, which fetches {spec}, is not installed")
        partial = cache.with_name(f"{folder}.partial-{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            packed = subprocess.run(
                ["npm", "pack", "--silent", "--pack-destination", str(partial), spec],
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            if packed.returncode:
                pytest.skip(f"npm could not fetch {spec}: {packed.stderr.strip()[-200:]}")
            (archive,) = partial.glob("*.tgz")
            with tarfile.open(archive) as tar:
                tar.extractall(partial, filter="data")
            archive.unlink()
            if not cache.is_dir():
                os.replace(partial, cache)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return cache / "package"


_QUANTIZE = """
import ctypes, glob, os, sys
folder, source, target, file_type, imatrix = sys.argv[1:6]
llama = ctypes.CDLL(glob.glob(os.path.join(folder, "libllama.v*.so"))[0])
class Params(ctypes.Structure):  # llama_model_quantize_params of llama.cpp 0.5
    _fields_ = [("nthread", ctypes.c_int32), ("ftype", ctypes.c_int32), ("output_type", ctypes.c_int32),
                ("embedding_type", ctypes.c_int32), ("flags", ctypes.c_bool * 8), ("imatrix", ctypes.c_void_p),
                ("kv", ctypes.c_void_p), ("tt", ctypes.c_void_p), ("prune", ctypes.c_void_p)]
class Importance(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]
llama.llama_model_quantize_default_params.restype = Params
llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]
params = llama.llama_model_quantize_default_params()
assert params.ftype == 7 or params.ftype == 9, params.ftype
params.nthread, params.ftype = 2, int(file_type)
if imatrix:
    import numpy as np
    data = dict(np.load(imatrix))
    entries = (Importance * (len(data) + 1))()
    for entry, (name, values) in zip(entries, data.items()):
        entry.name, entry.data, entry.size = name.encode(), values.ctypes.data, values.size
    params.imatrix = ctypes.addressof(entries)
sys.exit(llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))
"""


@pytest.fixture(scope="session")
def llama_quantize():
    """A function `(source, target, file type number, imatrix)` that runs llama.cpp's `llama_model_quantize`."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip(f"{NODE_LLAMA} is for Linux on x86-64")
    folder = cached_npm_package(NODE_LLAMA, "node-llama-cpp-3.22.1") / "bins" / "linux-x64"

    def run(source: Path, target: Path, file_type: int, imatrix: dict[str, np.ndarray] | None = None) -> None:
        file = target.with_suffix(".npz")
        if imatrix:
            np.savez(file, **imatrix)
        arguments = [str(folder), str(source), str(target), str(file_type), str(file) if imatrix else ""]
        done = subprocess.run([sys.executable, "-c", _QUANTIZE, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


@pytest.fixture
def tiny_llama():
    """The factory of small models: `tiny_llama(tied=True).write(path)`."""
    return TinyLlama
