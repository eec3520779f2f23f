"""Outputs that cannot be finished: nothing half-written is left, whatever stopped the writing; and damaged numbers are
blamed on the weight."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import SMALL

import irlab
from irlab import registry
from irlab.cli import main
from irlab.errors import InputError
from irlab.types import f32, tensor
from irlab.weight_uses import replace_weights
from irlab.weights import Array, Prune, WeightSymbol, read_alone

STOPPED = [
    (KeyboardInterrupt(), 130, "interrupted; outputs that were not finished were removed"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
    (OSError(errno.EROFS, "Read-only file system"), 1, "Read-only file system"),
]


@pytest.mark.parametrize("target", ["gguf", "gguf{split=1MB}", "onnx", "hf", "ir"])
@pytest.mark.parametrize(("stop", "status", "message"), STOPPED, ids=["interrupted", "full", "read-only"])
def test_what_was_begun_is_removed(
    target: str,
    stop: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    backend = registry.backend(target.partition("{")[0])
    write = backend.write

    def stopped(self: Any, module: Any, out: Path, ctx: Any) -> None:
        for reading in write(self, module, out, ctx) or ():
            read_alone(reading, ctx.jobs)
        raise stop

    monkeypatch.setattr(backend, "write", stopped)
    out = tmp_path / ("out.irlab" if target == "ir" else "out")
    passes = "fuse,quantize,correct{rank=4}" if target == "gguf" else "fuse"  # its adapter is a second file
    learn = ["--calibration", "self", "--calibration-tokens", "256"] if target == "gguf" else []
    assert main(["demo", "-p", passes, *learn, "--emit", target, "-o", str(out), "--no-parity"]) == status
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [".", "..", "somewhere/.."])
def test_a_place_is_no_name(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here" / "somewhere").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert main(["demo", "-p", "fuse", "--emit", "onnx", "-o", name, "--force"]) == 1
    assert "is a place, not the name of an output" in capsys.readouterr().err


@pytest.mark.parametrize("pipeline", ["", "quantize{group=0}", "sparsify{method=magnitude}"])
def test_a_damaged_weight_is_named(pipeline: str, tmp_path: Path) -> None:
    values = np.ones((4, 8), np.float32)
    values[2, 3] = np.nan
    module = irlab.parse(SMALL)
    replace_weights(module.graph, {"w": WeightSymbol("w", Array(tensor(f32, (4, 8)), values))})
    with pytest.raises(InputError, match="weight 'w'"):
        irlab.emit(irlab.run(module, pipeline), "onnx{layout=plain}", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_one_damaged_number_does_not_prune_the_rest() -> None:
    """Compared with NaN every number is small."""
    values = np.ones((4, 8), np.float32)
    values[0, 0] = np.inf
    with pytest.raises(InputError, match="cannot be told large from small"):
        Prune(Array(tensor(f32, (4, 8)), values)).read()


def test_a_group_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose a group that divides 8"):
        irlab.emit(irlab.parse(SMALL), "onnx{precision=int4 group=7 layout=plain}", tmp_path / "out")
