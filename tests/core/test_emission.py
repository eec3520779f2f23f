"""Several outputs of one module: each tensor of the source is read once, and each output stands or falls by itself."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import irlab
from irlab import GraphBuilder, Module, nn
from irlab.api import make_backend
from irlab.cli import main
from irlab.emission import emit_together
from irlab.errors import InputError, IrlabError, LegalityError
from irlab.passmgr import Context
from irlab.types import TensorType, f32, tensor
from irlab.weights import File, Reading, WeightSymbol, finite_rows, read_together
from irlab.weights.safetensors import SafetensorsFile, SafetensorsWriter
from irlab.weights.shelf import SHELF


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """How many bytes of tensors were read, by file and name; the memory is of whatever was mapped."""
    counts: Counter[tuple[str, str]] = Counter()
    read = SafetensorsFile.read

    def counting(self: SafetensorsFile, name: str, start: int, stop: int) -> Any:
        rows = read(self, name, start, stop)
        counts[str(self.path), name] += rows.nbytes
        return rows

    monkeypatch.setattr(SafetensorsFile, "read", counting)
    return counts


def target_names() -> dict[str, str]:
    """Outputs of three runtimes, and of one more; without TensorRT's where it is not installed."""
    from irlab.backends.tensorrt import library

    trt = {} if library.missing() else {"trt": "tensorrt{targets=sm89}"}
    return {"m.gguf": "gguf", "onnx": "onnx", **trt, "hf": "hf"}


@pytest.mark.parametrize("pipeline", ["fuse,kv-cache", "fuse,quantize{scheme=int4 group=32},kv-cache"])
def test_each_tensor_of_the_source_is_read_once(
    pipeline: str, tmp_path: Path, bytes_read: Counter[tuple[str, str]]
) -> None:
    module = irlab.run(irlab.load("demo"), pipeline)
    sizes = {
        (str(leaf.path), leaf.name): leaf.size_bytes
        for symbol in irlab.load("demo").weights.values()
        for leaf in [symbol.recipe]
        if isinstance(leaf, File)
    }
    bytes_read.clear()
    outputs: dict[str | Path, str] = {tmp_path / name: target for name, target in target_names().items()}
    assert len(irlab.emit_all(module, outputs, parity=False)) == len(outputs)
    assert bytes_read.keys() >= sizes.keys()
    # Vectors of up to 1 KiB stand in ONNX's graph, which is written before. And for each output a row of some matrix is
    # read, to see that the checkpoint is there.
    more = {key: bytes_read[key] - size for key, size in sizes.items() if bytes_read[key] > size > 512}
    assert sum(more.values()) <= len(outputs) * 1024 and len(more) <= len(outputs)
    assert not SHELF._kept and not SHELF._expected


def test_together_is_what_each_alone_is(tmp_path: Path) -> None:
    module = irlab.run(irlab.load("demo"), "fuse,quantize{scheme=int4 group=32},kv-cache")
    irlab.emit_all(module, {tmp_path / "a.gguf": "gguf", tmp_path / "a": "onnx"}, parity=False)
    irlab.emit(module, "gguf", tmp_path / "b.gguf", parity=False)
    irlab.emit(module, "onnx", tmp_path / "b", parity=False)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full after some tensors of a GGUF file."""
    from irlab.backends.gguf.writer import GGUFWriter

    write, left = GGUFWriter.write, iter(range(12))

    def limited(self: GGUFWriter, name: str, data: Any) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, data)

    monkeypatch.setattr(GGUFWriter, "write", limited)


@pytest.mark.usefixtures("full_disk")
def test_what_fails_half_way_leaves_nothing_and_the_others_go_on(tmp_path: Path) -> None:
    module = irlab.run(irlab.load("demo"), "fuse,kv-cache")
    irlab.emit(module, "onnx", tmp_path / "alone", parity=False)
    outputs = [(make_backend(target, {}), tmp_path / name) for name, target in target_names().items()]
    refused: list[tuple[str, str]] = []

    def note(backend: Any, error: IrlabError) -> None:
        refused.append((backend.name, str(error)))

    done = list(emit_together(module, outputs, parity=False, force=False, ctx=Context(), refused=note))
    assert [emitted.target for emitted in done] == [b.name for b, _ in outputs if b.name != "gguf"]
    ((name, said),) = refused
    assert name == "gguf" and "No space left on device" in said
    assert {path.name for path in tmp_path.iterdir()} == {
        "alone",
        *(out.name for b, out in outputs if b.name != "gguf"),
    }
    data = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("alone", "onnx")]
    assert data[0] == data[1]
    assert not SHELF._kept and not SHELF._expected


@pytest.mark.usefixtures("full_disk")
def test_a_failure_ends_all_that_is_not_finished(tmp_path: Path) -> None:
    module = irlab.run(irlab.load("demo"), "fuse,kv-cache")
    with pytest.raises(InputError, match="No space left on device"):
        irlab.emit_all(module, {tmp_path / "onnx": "onnx{ep=wasm}", tmp_path / "m.gguf": "gguf"}, parity=False)
    # The first one was complete when the second failed.
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_nothing_is_written_before_all_targets_agree(tmp_path: Path, bytes_read: Counter[tuple[str, str]]) -> None:
    module = irlab.run(irlab.load("demo"), "fuse,quantize{scheme=int3 group=32},kv-cache")
    bytes_read.clear()
    with pytest.raises(LegalityError, match="GGUF has no type"):
        irlab.emit_all(module, {tmp_path / "onnx": "onnx", tmp_path / "m.gguf": "gguf"}, parity=False)
    assert list(tmp_path.iterdir()) == []


def test_disks_must_hold_all_outputs_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    module = irlab.run(irlab.load("demo"), "fuse,kv-cache")
    alone = irlab.emit(module, "gguf", tmp_path / "alone.gguf", parity=False).bytes
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, alone * 3 // 2))
    with pytest.raises(InputError, match="together need about"):
        irlab.emit_all(module, {tmp_path / "a.gguf": "gguf", tmp_path / "b.gguf": "gguf"}, parity=False)
    assert [path.name for path in tmp_path.iterdir()] == ["alone.gguf"]


def test_keep_going_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = tmp_path / "onnx", tmp_path / "m.gguf"
    command = ["demo", "-p", "fuse,quantize{scheme=int3 group=32},kv-cache", "--no-parity", "--keep-going"]
    status = main([*command, "--emit", "gguf", "-o", str(theirs), "--emit", "onnx", "-o", str(ours)])
    assert status == 1 and ours.is_dir() and not theirs.exists()
    assert "error: gguf: " in capsys.readouterr().err


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], File]:
    """Tensors of a file: three matrices."""
    of: TensorType = tensor(f32, (48, 32))
    values = np.random.default_rng(0).standard_normal((3, 48, 32), dtype=np.float32)
    with SafetensorsWriter(tmp_path / "w.safetensors", dict.fromkeys("abq", of)) as file:
        for name, rows in zip("abq", values):
            file.write(name, rows)
    return lambda name: File(tmp_path / "w.safetensors", name, of)


def test_turns_follow_the_source(checkpoint: Callable[[str], File], bytes_read: Counter[tuple[str, str]]) -> None:
    """Weights made from one tensor follow each other, whichever order the readings have, also where all of them share
    another one."""
    a, b = (WeightSymbol(name, checkpoint(name)) for name in "ab")
    mean_a, mean_b = (
        WeightSymbol(f"{name}+q", irlab.weights.Mean((checkpoint(name), checkpoint("q")))) for name in "ab"
    )
    order: list[str] = []
    readings = [
        Reading(symbols, finite_rows, lambda chunk: order.append(chunk.symbol.name))
        for symbols in ([a, b], [mean_b, mean_a])
    ]
    read_together(readings, jobs=2)
    assert order == ["a", "a+q", "b", "b+q"]
    assert set(bytes_read.values()) == {48 * 32 * 4}


def test_few_tensors_are_kept_at_a_time(tmp_path: Path) -> None:
    of = tensor(f32, (64, 8))
    names = [f"t{i}" for i in range(40)]
    with SafetensorsWriter(tmp_path / "w.safetensors", dict.fromkeys(names, of)) as file:
        for name in names:
            file.write(name, np.zeros((64, 8), np.float32))
    symbols = [WeightSymbol(name, File(tmp_path / "w.safetensors", name, of)) for name in names]
    most = 0

    def take(chunk: Any) -> None:
        nonlocal most
        most = max(most, len(SHELF._kept))

    # However different the orders in which outputs have their weights.
    read_together([Reading(symbols, finite_rows, take), Reading(symbols[::-1], finite_rows, take)], jobs=2)
    assert 1 <= most <= 2 + 2
    assert not SHELF._kept and not SHELF._expected


def test_an_error_ends_one_reading(checkpoint: Callable[[str], File]) -> None:
    symbols = [WeightSymbol(name, checkpoint(name)) for name in "abq"]
    taken: list[str] = []

    def work(symbol: WeightSymbol, start: int, stop: int) -> None:
        if symbol.name == "b":
            raise InputError("broken")

    good = Reading(symbols, finite_rows, lambda chunk: taken.append(chunk.symbol.name))
    bad = Reading(symbols, work, lambda chunk: None)
    read_together([bad, good], jobs=2)
    assert taken == ["a", "b", "q"] and good.error is None
    assert str(bad.error) == "broken"
    assert not SHELF._kept and not SHELF._expected


def test_a_plain_function_may_write(tmp_path: Path) -> None:
    """A third party's backend need not read together with the others."""
    from irlab.backends.ir import IR

    class Plain(IR, name="plain"):
        def write(self, module: Module, out: Path, ctx: Context) -> None:  # type: ignore[override]
            out.write_text("written")

    b = GraphBuilder()
    b.output(y=nn.linear(b.input("x", "f32", ("n", 4)), b.random_weight("w", "f32", (4, 4))))
    outputs = [(Plain(), tmp_path / "plain"), (make_backend("ir{embed=true}", {}), tmp_path / "m.irlab")]
    done = list(emit_together(b.module(), outputs, parity=False, force=False, ctx=Context()))
    assert [emitted.out.name for emitted in done] == ["plain", "m.irlab"]
    assert (tmp_path / "plain").read_text() == "written"
