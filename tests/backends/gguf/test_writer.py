"""The streaming GGUF writer, read back by gguf-py."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from irlab.backends.gguf import ggml
from irlab.backends.gguf.writer import GGUFWriter, ShardsWriter, TensorInfo, size_bytes, write
from irlab.errors import InputError
from irlab.outputs import whole_output

RNG = np.random.default_rng(0)
METADATA = {
    "general.architecture": "llama",
    "general.name": "Grüße",
    "llama.block_count": 7,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.tokens": ["a", "", "Ġβ"],
    "tokenizer.ggml.scores": np.array([0.5, -1, -2], np.float32),
    "tokenizer.ggml.token_type": np.array([1, 3, 6], np.int32),
    "some.flags": np.array([True, False]),
    "some.long": np.uint64(1 << 40),
}


def tensor(name: str, shape: tuple[int, ...], kind: str = "F32") -> TensorInfo:
    DATA[name] = ggml.quantize(RNG.standard_normal(shape).astype(np.float32), kind)
    return TensorInfo(name, shape, ggml.ggml_type(kind))


DATA: dict[str, np.ndarray] = {}


def read(path):
    reader = gguf.GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def test_gguf_py_reads_back_metadata_and_tensors(tmp_path):
    infos = [
        tensor("token_embd.weight", (5, 64), "Q8_0"),
        tensor("one", (33,)),  # 132 bytes: the next tensor needs padding
        tensor("experts", (3, 4, 32), "Q4_0"),
        tensor("half", (2, 3), "F16"),
    ]
    with GGUFWriter(tmp_path / "m.gguf", METADATA, infos) as file:
        # In any order, and in pieces.
        file.write("experts", DATA["experts"])
        file.write("token_embd.weight", DATA["token_embd.weight"][:2])
        file.write("half", DATA["half"])
        file.write("token_embd.weight", DATA["token_embd.weight"][2:])
        file.write("one", DATA["one"])
    metadata, found = read(tmp_path / "m.gguf")
    for key, value in METADATA.items():
        if isinstance(value, np.ndarray):
            value = value.tolist()
        assert metadata[key] == pytest.approx(value) if isinstance(value, float) else metadata[key] == value, key
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["llama.block_count"].types == [gguf.GGUFValueType.UINT32]
    assert list(found) == [info.name for info in infos]
    for info in infos:
        other = found[info.name]
        assert tuple(reversed(other.shape.tolist())) == info.shape
        assert other.data_offset % gguf.GGUF_DEFAULT_ALIGNMENT == 0
        assert other.data.tobytes() == DATA[info.name].tobytes()
    assert size_bytes(METADATA, infos) == (tmp_path / "m.gguf").stat().st_size


def test_bytes_equal_those_of_gguf_py(tmp_path):
    """Same keys, types and tensors: the whole file is what gguf-py's writer makes of them."""
    ours = tensor("w", (4, 96), "Q8_0")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_uint32("llama.block_count", 7)
    writer.add_array("tokenizer.ggml.tokens", ["a", "β"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    writer.add_tensor("w", DATA["w"], raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 7,
        "tokenizer.ggml.tokens": ["a", "β"],
        "tokenizer.ggml.scores": np.array([0.5, 1.5], np.float32),
    }
    write(tmp_path / "ours.gguf", metadata, {ours: DATA["w"]})
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_shards_hold_all_tensors_once(tmp_path):
    infos = [tensor(f"t{index}", (8, 32)) for index in range(5)]  # 1024 bytes each
    with ShardsWriter(tmp_path, "m", METADATA, infos, 2100) as shards:
        for info in reversed(infos):
            shards.write(info.name, DATA[info.name])
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == [f"m-{index:05d}-of-00003.gguf" for index in (1, 2, 3)]
    names = []
    for index, path in enumerate(paths):
        metadata, found = read(path)
        assert (metadata["split.no"], metadata["split.count"], metadata["split.tensors.count"]) == (index, 3, 5)
        assert ("general.name" in metadata) == (index == 0)
        names += list(found)
    assert names == [f"t{index}" for index in range(5)]


def test_a_piece_is_on_disk_when_it_was_written(tmp_path):
    """Nothing is held back, so that memory does not grow."""
    sizes = []
    with GGUFWriter(tmp_path / "m.gguf", METADATA, [TensorInfo("w", (4096,), ggml.ggml_type("F32"))]) as file:
        for _ in range(4):
            file.write("w", np.zeros(4096, np.uint8))
            sizes.append((tmp_path / "m.gguf").stat().st_size)
    assert np.diff(sizes).tolist() == [4096] * 3


def test_a_tensor_of_another_size_is_an_error(tmp_path):
    info = TensorInfo("w", (32,), ggml.ggml_type("F32"))
    with pytest.raises(RuntimeError, match="w: 64 bytes less came than were announced"):
        write(tmp_path / "m.gguf", METADATA, {info: np.zeros(64, np.uint8)})
    with pytest.raises(RuntimeError, match="more bytes came for w"):
        write(tmp_path / "m.gguf", METADATA, {info: np.zeros(129, np.uint8)})


def test_an_interrupted_file_never_appears(tmp_path):
    target = tmp_path / "m.gguf"
    info = TensorInfo("w", (32,), ggml.ggml_type("F32"))
    with (
        pytest.raises(KeyboardInterrupt),
        whole_output(target, directory=False, force=False) as partial,
        GGUFWriter(partial, METADATA, [info]) as file,
    ):
        file.write("w", np.zeros(64, np.uint8))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "infos, message",
    [
        ([("a", (2, 32)), ("a", (2, 32))], "two tensors are called a"),
        ([("x" * 64, (2, 32))], "longer than 63 bytes"),
        ([("a", (1, 1, 1, 1, 32))], "cannot hold the shape"),
        ([("a", (0, 32))], "cannot hold the shape"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, infos, message):
    f32 = ggml.ggml_type("F32")
    with pytest.raises(InputError, match=message):
        GGUFWriter(tmp_path / "m.gguf", METADATA, [TensorInfo(*info, f32) for info in infos])


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_an_int_beyond_u32_needs_an_explicit_type(tmp_path, value):
    with pytest.raises(InputError, match=r"metadata k: .* is no u32"):
        write(tmp_path / "m.gguf", {"k": value}, {})
