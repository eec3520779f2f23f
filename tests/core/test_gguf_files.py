"""GGUF files from strangers: what gguf-py writes is read to the same numbers, and headers that lie are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irlab.encodings import IntegerEncoding, ggml
from irlab.errors import InputError
from irlab.types import f16, f32, tensor
from irlab.weights.gguf import FromGGUF, open_gguf

PLAIN = {"norm": np.linspace(-1, 1, 6, dtype=np.float32), "table": np.eye(3, 4, dtype=np.float16)}
QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q8_0", "MXFP4", "Q4_K", "Q6_K", "Q2_K", "IQ4_NL", "IQ4_XS")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.eps", 0.5)
    writer.add_bool("yes", True)
    writer.add_string("name", "é")
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("words", ["a", "", "ü"])
    for name, values in PLAIN.items():
        writer.add_tensor(name, values)
    x = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    for name in QUANTIZED:
        blocks = np.asarray(ggml(name).encode(x)["blocks"])
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_are_read_as_they_were_written(file: Path) -> None:
    found = open_gguf(file).metadata
    wanted = {"llama.block_count": 2, "llama.eps": 0.5, "yes": True, "name": "é", "numbers": (1, 2, 3)}
    assert {key: found[key] for key in wanted} == wanted
    assert found["words"] == ("a", "", "ü")


def test_plain_tensors_are_the_numbers_that_were_written(file: Path) -> None:
    for name, values in PLAIN.items():
        kind = open_gguf(file).entry(name).type
        assert kind is tensor(f16 if values.dtype == np.float16 else f32, values.shape)
        np.testing.assert_array_equal(FromGGUF(file, name, kind).read(), values)
    np.testing.assert_array_equal(FromGGUF(file, "table", tensor(f16, (3, 4))).rows(1, 2), PLAIN["table"][1:2])


@pytest.mark.parametrize("name", QUANTIZED)
def test_codes_mean_what_gguf_py_says(file: Path, name: str) -> None:
    entry = open_gguf(file).entry(name)
    recipe = FromGGUF(file, name, entry.type)
    raw = open_gguf(file).read(name, 0, 4)
    wanted = gguf.dequantize(raw, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(recipe.read(), wanted)
    np.testing.assert_array_equal(recipe.rows(1, 3), wanted[1:3])


def test_codes_that_other_formats_share_have_their_encoding(file: Path) -> None:
    assert open_gguf(file).entry("Q4_0").type.encoding == IntegerEncoding(4, True, 32, f16)
    assert open_gguf(file).entry("Q8_0").type.encoding == IntegerEncoding(8, True, 32, f16)
    assert open_gguf(file).entry("Q4_K").type.encoding == ggml("q4_k")


def test_a_recipe_of_another_type_is_refused(file: Path) -> None:
    with pytest.raises(InputError, match=r"tensor 'norm' is f32\[6\], f32\[7\] was expected"):
        FromGGUF(file, "norm", tensor(f32, (7,))).read()


def header(pairs: bytes = b"", tensors: bytes = b"", counts: tuple[int, int] = (0, 0), version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, counts[1], counts[0]) + pairs + tensors


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def info(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HOSTILE = {
    "no GGUF": (b"GGML" + bytes(40), "this is no GGUF file"),
    "short": (b"GGUF", "4 bytes are no GGUF file"),
    "version": (header(version=1), "GGUF version 1 is not known"),
    "big-endian": (header(version=3 << 24), "it is a big-endian file"),
    "many tensors": (header(counts=(0, 1 << 60)), f"it says that it holds {1 << 60} tensors"),
    "many pairs": (header(counts=(1 << 62, 0)), f"it says that it holds {1 << 62} metadata values"),
    "long key": (header(struct.pack("<Q", 1 << 50) + bytes(20), counts=(1, 0)), "bytes of a key"),
    "bad utf-8": (header(text(b"\xff\xff") + struct.pack("<IQ", 4, 0), counts=(1, 0)), "a key is not UTF-8"),
    "unknown value": (header(text("k") + struct.pack("<IQ", 99, 0), counts=(1, 0)), "of the unknown type 99"),
    "nested array": (header(text("k") + struct.pack("<IIQ", 9, 9, 1), counts=(1, 0)), "which no array has"),
    "long array": (header(text("k") + struct.pack("<IIQ", 9, 4, 1 << 61), counts=(1, 0)), f"{1 << 61} values of k"),
    "many words": (header(text("k") + struct.pack("<IIQ", 9, 8, 1 << 61), counts=(1, 0)), f"{1 << 61} values of k"),
    "key twice": (header(2 * (text("k") + struct.pack("<Iq", 11, 1)), counts=(2, 0)), "the key 'k' stands twice"),
    "alignment": (
        header(text("general.alignment") + struct.pack("<II", 4, 12), counts=(1, 0)),
        "general.alignment is 12, which is no power of two",
    ),
    "five axes": (header(tensors=info("w", (1,) * 5), counts=(0, 1)), "tensor 'w' has 5 dimensions"),
    "unknown type": (header(tensors=info("w", (32,), kind=77), counts=(0, 1)), "of the unknown GGML type 77"),
    "half a block": (header(tensors=info("w", (33,), kind=2), counts=(0, 1)), "are not whole blocks of Q4_0"),
    "outside": (header(tensors=info("w", (1 << 40, 1 << 20)), counts=(0, 1)), "tensor 'w' lies outside the file"),
    "not aligned": (header(tensors=info("w", (1,), offset=4), counts=(0, 1)) + bytes(99), "not aligned to 32 bytes"),
    "overlap": (
        header(tensors=info("v", (16,)) + info("w", (16,), offset=32), counts=(0, 2)) + bytes(999),
        "tensor 'w' overlaps tensor 'v'",
    ),
    "tensor twice": (
        header(tensors=info("w", (1,)) + info("w", (1,), offset=32), counts=(0, 2)) + bytes(999),
        "two tensors are called 'w'",
    ),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_headers_that_lie_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        open_gguf(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_read_or_refused(file: Path, tmp_path: Path, data: st.DataObject) -> None:
    whole = file.read_bytes()
    end = data.draw(st.integers(0, len(whole)))
    damaged = bytearray(whole[:end])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, min(len(damaged), 900) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"{data.draw(st.integers(0, 1 << 60))}.gguf"
    path.write_bytes(damaged)
    try:
        found = open_gguf(path)
        for name, entry in found.entries.items():
            FromGGUF(path, name, entry.type).read()
    except InputError as error:
        assert str(path) in str(error) or "scale" in str(error) or "type" in str(error)
    finally:
        path.unlink()
