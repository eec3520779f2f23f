"""A model of 80 layers and 70 billion parameters is dumped in seconds, in little memory."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import irlab
from irlab import Module
from irlab.statistics import statistics
from irlab.viz import dump

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MAX_SECONDS, MAX_BYTES = 5.0, 500 << 20


@pytest.fixture(scope="module")
def lifted(tmp_path_factory: pytest.TempPathFactory) -> Module:
    directory = tmp_path_factory.mktemp("llama-70b")
    (directory / "config.json").write_text(json.dumps(LLAMA_70B))
    return irlab.load(directory)


def peak_bytes() -> int:
    """The most memory that this process has held; needs Linux to be told apart from the address space."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


@pytest.mark.parametrize("pipeline", ["", "fuse"])
def test_a_70b_model_is_dumped_in_seconds(lifted: Module, pipeline: str, tmp_path: Path) -> None:
    module = irlab.run(lifted.clone(), pipeline)
    before = peak_bytes()
    for suffix in (".dot", ".json", ".onnx"):
        start = time.process_time()
        dump(module, tmp_path / f"g{suffix}")
        assert time.process_time() - start < MAX_SECONDS, suffix
    assert peak_bytes() - before < MAX_BYTES
    text = (tmp_path / "g.dot").read_text()
    assert "layers 1-79: same as layer 0" in text and len(text) < 100_000


def test_its_statistics(lifted: Module) -> None:
    start = time.process_time()
    found = statistics(irlab.run(lifted.clone(), "fuse"))
    assert time.process_time() - start < MAX_SECONDS
    assert found.parameters == 70_553_706_560
    assert found.cache_bytes_per_token == 80 * 2 * 8 * 128 * 2
    assert found.flops_per_unit == pytest.approx(2 * (found.parameters - 128256 * 8192), rel=0.02)
