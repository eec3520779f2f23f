"""What the tests of all backends share. Standing here, it also puts this folder on the path."""

from __future__ import annotations

from pathlib import Path

import pytest
from runtimes import Compare, through_onnx_runtime, through_tensorrt


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny products are slower on several threads, and far slower on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(params=["onnx", "tensorrt"])
def compare(request: pytest.FixtureRequest, tmp_path: Path) -> Compare:
    """Write a module and run it: in ONNX Runtime, and in the evaluator of TensorRT's networks."""
    return through_onnx_runtime(tmp_path) if request.param == "onnx" else through_tensorrt(tmp_path)
