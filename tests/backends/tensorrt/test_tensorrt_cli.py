"""The command line with TensorRT: one line for what is wrong, the right status, nothing left behind; and the runner."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import irlab_opt

from irlab.backends.tensorrt import library
from irlab.backends.tensorrt.run import read_config
from irlab.errors import InputError

ROOT = Path(__file__).parents[3]

if library.missing():
    pytest.skip(library.missing(), allow_module_level=True)


WRONG = {
    "contradicting sizes": ("fuse", "tensorrt{max-seq=8 opt-seq=9}", 2, "opt-seq=9 max-seq=8}} contradict each other"),
    "an unknown capability": ("fuse", "tensorrt{targets=sm90}", 2, "tensorrt cannot build for 'sm90'"),
    "an unknown precision": ("fuse", "tensorrt{precision=fp12}", 2, "takes auto | fp16 | bf16 | fp32, not 'fp12'"),
    "fp8 on Ampere": (
        "fuse,quantize{scheme=fp8}", "tensorrt{targets=sm80}", 1, "sm80 (Ampere: A100) cannot hold fp8",
    ),
    "nvfp4 on Ada": (
        "fuse,quantize{scheme=nvfp4}", "tensorrt{targets=sm120,sm89}", 1, "cannot hold fp4, the type of weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_one_line_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    passes, target, status, words = WRONG[name]
    done = irlab_opt("demo", "-p", passes, "--emit", target, "-o", "out", cwd=tmp_path)
    words = words.replace("}}", "}")
    assert done.returncode == status, done.stderr
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_while_writing_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: weights fit, the engine does not."""
    resource = pytest.importorskip("resource")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))

    command = [sys.executable, "-m", "irlab", "demo", "-q", "-p", "fuse,quantize{scheme=int4},kv-cache"]
    command += ["--no-parity", "--emit", "tensorrt{targets=sm89}", "-o", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, preexec_fn=limit)
    assert done.returncode == 1, done.stderr
    assert "writing out failed: File too large" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_one_recipe_to_three_targets(tmp_path: Path) -> None:
    recipe = "fuse,quantize{scheme=int4 group=32},kv-cache"
    outputs = ("--emit", "gguf", "-o", "m.gguf", "--emit", "onnx", "-o", "m-onnx", "--emit", "tensorrt", "-o", "m-trt")
    done = irlab_opt("demo", "-p", recipe, *outputs, "--report", "report.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["bytes"]) == {"m.gguf", "m-onnx", "m-trt"}
    assert "layer by layer (engine not run)" in report["parity"]["m-trt"]["runtime"]
    assert all(parity["kl"] < 0.05 and not parity["failure"] for parity in report["parity"].values())


def test_the_runner_without_a_gpu_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    stated = {"engine": "model.engine", "inputs": [], "outputs": [], "cache_buffers": {}, "profiles": [{"name": "x"}]}
    (tmp_path / "engine.json").write_text(json.dumps(stated))
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}})
    )
    command = [sys.executable, "-m", "irlab.backends.tensorrt.run", str(tmp_path), "a"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (1, "error: no CUDA device was found, and engines run nowhere else\n")
    tool = [sys.executable, str(ROOT / "tools" / "check_tensorrt_gpu.py")]
    checked = subprocess.run(tool, capture_output=True, text=True, timeout=120, check=False)
    assert (checked.returncode, checked.stderr) == (2, "no CUDA device was found\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "is not JSON"),
        ("[]", "does not describe an engine"),
        ('{"engine": "../../etc/passwd", "profiles": [{"name": "x"}]}', "outside its directory"),
        ('{"engine": "m.engine", "profiles": []}', "does not describe an engine"),
    ],
)
def test_a_hostile_description_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read_config(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read_config(tmp_path / "missing")
