"""Files for ep=tensorrt: TensorRT's own parser takes them, and its builder makes engines of them, without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx_files import write
from small_llama import Llama

from irlab.backends.tensorrt import library
from irlab.encodings import Encoding, IntegerEncoding
from irlab.types import f16, f32

if library.missing():
    pytest.skip(library.missing(), allow_module_level=True)


class Parsed:
    """A network that TensorRT's ONNX parser made of a file, or the words with which it refused."""

    def __init__(self, directory: Path) -> None:
        self.trt = library.load()
        self.log = self.trt.Logger(self.trt.Logger.INTERNAL_ERROR)
        self.builder = self.trt.Builder(self.log)
        self.network = self.builder.create_network(0)
        self.parser = self.trt.OnnxParser(self.network, self.log)
        taken = self.parser.parse_from_file(str(directory / "model.onnx"))
        errors = [self.parser.get_error(i) for i in range(self.parser.num_errors)]
        self.refused = "" if taken else "; ".join(f"{e.node_operator()}: {e.desc()}" for e in errors)

    def build(self, capability: str) -> int:
        """The bytes of an engine for prompts of up to 16 tokens and caches of up to 32."""
        config = self.builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(self.trt.ComputeCapability, capability.upper()), 0)
        profile = self.builder.create_optimization_profile()
        for i in range(self.network.num_inputs):
            tensor = self.network.get_input(i)
            shapes = [[size(axis, known, tensor.name) for axis, known in enumerate(tensor.shape)] for size in SIZES]
            profile.set_shape(tensor.name, *shapes)
        config.add_optimization_profile(profile)
        engine = self.builder.build_serialized_network(self.network, config)
        return 0 if engine is None else int(engine.nbytes)


def _size(batch: int, seq: int, past: int) -> Any:
    def size(axis: int, known: int, name: str) -> int:
        if known >= 0:
            return known
        if axis == 0:
            return batch
        return past if name.startswith("past") else past + seq if name == "attention_mask" else seq

    return size


SIZES = (_size(1, 1, 1), _size(1, 16, 16), _size(2, 16, 32))
"""The smallest, usual and largest size of a dimension."""


FILES: dict[str, tuple[Encoding | None, str]] = {
    "f32": (None, "f32"),
    "half": (None, "bf16"),
    "int4 g32": (IntegerEncoding(4, True, 32, f16), "bf16"),
    "int8 a row": (IntegerEncoding(8, True, 0, f32), "bf16"),
    "int4 with zero points": (IntegerEncoding(4, False, 32, f16), "f32"),
}


@pytest.mark.parametrize("name", FILES)
def test_engines_are_built_from_files_for_tensorrt(name: str, tmp_path: Path) -> None:
    encoding, dtype = FILES[name]
    module = Llama(hidden=128, ffn=256, head_dim=32, vocab=64, layers=1, encoding=encoding, dtype=dtype).module()
    write(module, tmp_path / "out", ep="tensorrt")
    parsed = Parsed(tmp_path / "out")
    assert not parsed.refused
    assert parsed.build("sm89") > 10_000


def test_the_low_bits_are_in_the_engine(tmp_path: Path) -> None:
    sizes = {}
    for name, encoding in (("half", None), ("int4", IntegerEncoding(4, True, 32, f16))):
        module = Llama(hidden=256, ffn=1024, head_dim=64, vocab=64, layers=1, encoding=encoding, dtype="bf16").module()
        write(module, tmp_path / name, ep="tensorrt")
        sizes[name] = Parsed(tmp_path / name).build("sm89")
    # 983,040 numbers of 2 bytes, and of 4 bits with a scale in 32.
    assert 0 < sizes["int4"] < sizes["half"] - 1_000_000


def test_files_for_the_cpu_are_not_taken(tmp_path: Path) -> None:
    """What the table says is missing is missing: Attention with a cache."""
    write(Llama().module(), tmp_path / "out", profile="portable")
    assert "TensorRT only supports Attention nodes with one output" in Parsed(tmp_path / "out").refused


def test_the_table_is_what_the_parser_supports() -> None:
    from irlab.backends.onnx.kernels import kernels

    trt = library.load()
    log = trt.Logger(trt.Logger.INTERNAL_ERROR)
    parser = trt.OnnxParser(trt.Builder(log).create_network(0), log)
    assert [op for op in kernels("tensorrt") if not parser.supports_operator(op)] == []
    assert not parser.supports_operator("GatherBlockQuantized") and not parser.supports_operator("BitShift")
