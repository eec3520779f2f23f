"""Checkpoints from strangers: headers and indexes that lie are refused in one line that names the tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from irlab.checkpoint import Checkpoint, find_checkpoint
from irlab.errors import InputError, IRError
from irlab.types import bf16, f32, tensor
from irlab.weights.safetensors import SafetensorsWriter, open_safetensors

Header = dict[str, Any]


def opened(path: Path) -> Checkpoint:
    found = find_checkpoint(path)
    assert found is not None
    return found


def write(path: Path, header: Header | bytes, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, tuple[Header, str]] = {
    "negative offset": ({"w": entry([1], -4, 0)}, "tensor 'w': data_offsets [-4, 0] are not two positions"),
    "backwards": ({"w": entry([1], 8, 4)}, "tensor 'w': data_offsets [8, 4] run backwards"),
    "outside the file": ({"w": entry([4], 0, 16)}, "tensor 'w' lies outside the file"),
    "far outside": ({"w": entry([1], 2**62, 2**62 + 4)}, "tensor 'w' lies outside the file"),
    "overlap": ({"v": entry([2], 0, 8), "w": entry([1], 4, 8)}, "tensor 'w' overlaps tensor 'v'"),
    "same place": ({"v": entry([2], 0, 8), "w": entry([2], 0, 8)}, "overlaps tensor"),
    "gap": ({"w": entry([1], 4, 8)}, "4 bytes before tensor 'w' belong to no tensor"),
    "trailing bytes": ({"w": entry([1], 0, 4)}, "4 bytes at the end belong to no tensor"),
    "wrong size": ({"w": entry([3], 0, 8)}, "tensor 'w': f32[3] takes 12 bytes, data_offsets give 8"),
    "overflowing shape": ({"w": entry([2**40, 2**40], 0, 8)}, "tensor 'w': f32["),
    "negative size": ({"w": entry([-2], 0, 8)}, "tensor 'w': [-2] is not a shape"),
    "fractional size": ({"w": entry([2.0], 0, 8)}, "tensor 'w': [2.0] is not a shape"),
    "truth for a size": ({"w": entry([True, 2], 0, 8)}, "is not a shape"),
    "huge size": ({"w": entry([2**63], 0, 8)}, "is not a shape"),
    "no shape": ({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, "tensor 'w': its header must have dtype, shape and"),
    "extra field": ({"w": {**entry([2], 0, 8), "code": "x"}}, "tensor 'w': its header must have dtype, shape and"),
    "list for an entry": ({"w": [1, 2]}, "tensor 'w': its header must have"),
    "one offset": ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8]}}, "are not two positions"),
    "number for a dtype": ({"w": entry([2], 0, 8, 32)}, "tensor 'w': dtype is not a string"),
    "odd metadata": ({"__metadata__": {"a": 1}, "w": entry([2], 0, 8)}, "__metadata__ is not a table of strings"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused(tmp_path: Path, case: str) -> None:
    header, reason = HOSTILE[case]
    path = write(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        open_safetensors(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes are no safetensors file"),
        (b"\x01\x02", "2 bytes are no safetensors file"),
        (b"\xff" * 8, "a header of 18446744073709551615 bytes is absurd"),
        ((200_000_000).to_bytes(8, "little") + b"{}", "a header of 200000000 bytes is absurd"),
        ((1000).to_bytes(8, "little") + b"{}", "the file is truncated: it has 10 bytes"),
        ((2).to_bytes(8, "little") + b"[]", "the header is not a JSON object"),
        ((2).to_bytes(8, "little") + b"{x", "the header is not JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xfe", "the header is not JSON"),
        ((20000).to_bytes(8, "little") + b"[" * 20000, "the header is not JSON"),
        (b"\x80\x04" + b"pickle" * 9, "is absurd"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(reason)):
        open_safetensors(path)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry([1], 0, 4))
    path = write(tmp_path / "m.safetensors", f'{{"w": {one}, "w": {one}}}'.encode(), bytes(4))
    with pytest.raises(InputError, match="the header names 'w' twice"):
        open_safetensors(path)


@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_never_do_worse_than_an_input_error(tmp_path_factory: Any, noise: bytes, framed: bool) -> None:
    path = tmp_path_factory.mktemp("noise") / "m.safetensors"
    path.write_bytes((len(noise).to_bytes(8, "little") if framed else b"") + noise)
    with pytest.raises(InputError):
        open_safetensors(path)


def test_a_truncated_file_is_reported_with_its_first_lost_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.ones(8, np.float32), "b": np.ones(8, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"tensor 'b' lies outside the file.*truncated"):
        find_checkpoint(tmp_path)


def test_files_of_the_reference_implementation_are_read_and_ours_are_read_by_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "odd": rng.integers(0, 255, (3,), np.uint8),
        "flags": np.array([True, False]),
        "half": rng.standard_normal((2, 3)).astype(np.float16),
        "brain": rng.standard_normal((4, 2)).astype(ml_dtypes.bfloat16),
        "long": np.arange(4, dtype=np.int64),
        "scalar": np.array(2.5, np.float64),
        "none": np.zeros((0, 4), np.float32),
    }
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    safetensors.numpy.save_file(arrays, theirs, metadata={"format": "np"})
    file = open_safetensors(theirs)
    assert dict(file.metadata) == {"format": "np"} and set(file.entries) == set(arrays)
    types = {name: file.entry(name).type for name in arrays}
    with SafetensorsWriter(ours, {n: t for n, t in types.items() if t is not None}, {"format": "pt"}) as writer:
        for name, array in arrays.items():
            rows = file.read(name, 0, len(array) if array.ndim else 1)
            np.testing.assert_array_equal(rows.reshape(array.shape), array)
            writer.write(name, rows)
    assert writer.size_bytes == ours.stat().st_size
    for name, array in safetensors.numpy.load_file(ours).items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype
    assert set(open_safetensors(ours).entries) == set(arrays)


def test_the_writer_notices_missing_and_surplus_rows(tmp_path: Path) -> None:
    types = {"w": tensor(f32, (2, 3))}
    with pytest.raises(IRError, match="rows of 'w' were not written"), SafetensorsWriter(tmp_path / "a", types) as file:
        file.write("w", np.zeros((1, 3), np.float32))
    with pytest.raises(IRError, match="too many rows"), SafetensorsWriter(tmp_path / "b", types) as file:
        file.write("w", np.zeros((3, 3), np.float32))
    with pytest.raises(IRError, match="float64 rows"), SafetensorsWriter(tmp_path / "c", types) as file:
        file.write("w", np.zeros((2, 3)))


def test_a_dtype_that_irlab_lacks_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    header = {"new": entry([8], 0, 8, "F8_E8M0"), "w": entry([1], 8, 12)}
    write(tmp_path / "model.safetensors", header, bytes(12))
    checkpoint = opened(tmp_path)
    assert checkpoint.weight("w").read().tolist() == [0.0]
    with pytest.raises(InputError, match="tensor 'new' has the dtype F8_E8M0"):
        checkpoint.weight("new")


def sharded(directory: Path, weight_map: dict[str, Any] | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    safetensors.numpy.save_file({"a": np.ones((2, 2), np.float32)}, directory / "model-1.safetensors")
    safetensors.numpy.save_file({"b": np.zeros(3, ml_dtypes.bfloat16)}, directory / "model-2.safetensors")
    index = {"weight_map": weight_map or {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    checkpoint = opened(sharded(tmp_path))
    assert list(checkpoint) == ["a", "b"] and len(checkpoint) == 2 and "a" in checkpoint and "c" not in checkpoint
    assert checkpoint.type("b") is tensor(bf16, (3,))
    assert checkpoint.weight("a").read().sum() == 4
    with pytest.raises(InputError, match="no tensor called 'c'"):
        checkpoint.weight("c")


def test_tensors_that_disagree_with_the_config_are_refused(tmp_path: Path) -> None:
    checkpoint = opened(sharded(tmp_path))
    assert checkpoint.expect("a", (2, 2)).of is tensor(f32, (2, 2))
    with pytest.raises(InputError, match=r"tensor 'a' is f32\[2, 2\], config.json asks for the shape \[4, 2\]"):
        checkpoint.expect("a", (4, 2))


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "../model-1.safetensors",
        "sub/../../x.safetensors",
        "/etc/passwd",
        "C:\\x.safetensors",
        "..\\x.safetensors",
        "\\\\host\\share\\x.safetensors",
        "a\x00.safetensors",
        "",
        7,
        None,
        ["model-1.safetensors"],
    ],
)
def test_an_index_cannot_leave_its_directory(tmp_path: Path, name: Any) -> None:
    sharded(tmp_path / "m", {"a": "model-1.safetensors", "b": name})
    with pytest.raises(InputError, match=r"index.json: tensor 'b' is said to be in .* outside the directory"):
        find_checkpoint(tmp_path / "m")


def test_an_index_may_name_links_as_the_hub_cache_does(tmp_path: Path) -> None:
    blobs = sharded(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert opened(snapshot).weight("a").read().sum() == 4


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": 3}', "{'a': 1}", "\ud800", "[" * 100000]
)
def test_an_index_that_is_no_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match=r"index\.json"):
        find_checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-2\.safetensors: no such file"):
        find_checkpoint(tmp_path)


def test_a_tensor_that_is_not_in_its_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": "model-2.safetensors", "b": "model-2.safetensors"})
    with pytest.raises(InputError, match=r"model-2\.safetensors: no tensor called 'a'"):
        opened(tmp_path).weight("a")


def no_weights(directory: Path) -> Path:
    (directory / "config.json").write_text("{}")
    return directory


def pickled(directory: Path) -> Path:
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return directory


def pickled_shards(directory: Path) -> Path:
    return sharded(directory, {"a": "pytorch_model-1.bin"})


def pickle_itself(directory: Path) -> Path:
    return pickled(directory) / "pytorch_model.bin"


def test_a_directory_with_a_config_alone_has_no_checkpoint(tmp_path: Path) -> None:
    assert find_checkpoint(no_weights(tmp_path)) is None


@pytest.mark.parametrize("make", [pickled, pickled_shards, pickle_itself])
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(
        InputError, match=r"pytorch_model.*\.bin.*refused.*convert it with: python -c .*save_pretrained"
    ):
        find_checkpoint(make(tmp_path))


def test_files_and_odd_directories(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or directory"):
        find_checkpoint(tmp_path / "nowhere")
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / "adapter.safetensors")
    for path in (tmp_path, tmp_path / "adapter.safetensors"):
        assert list(opened(path)) == ["a"]
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / "second.safetensors")
    with pytest.raises(InputError, match=r"2 safetensors files, but no model\.safetensors\.index"):
        find_checkpoint(tmp_path)
