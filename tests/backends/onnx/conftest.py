"""What the tests of this backend share: write a module, run it in ONNX Runtime, compare it with the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_files import run_directory

from irlab.backends.onnx.emitter import Emitter
from irlab.backends.onnx.lowerings import STANDARD
from irlab.backends.onnx.writer import write_model
from irlab.interp import evaluate
from irlab.ir import Module
from irlab.passmgr import Context

Compare = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny products are slower on several threads, and far slower on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """Write a module with the standard lowerings; its outputs in ONNX Runtime must be the interpreter's."""

    def check(module: Module, inputs: Mapping[str, Any], rtol: float = 1e-4) -> dict[str, np.ndarray]:
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        expected = evaluate(module, arrays)
        directory = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        write_model(module, Emitter(STANDARD), directory, Context())
        found = run_directory(directory, arrays)
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            wanted = tensor.detach().numpy()
            assert found[name].dtype == wanted.dtype and found[name].shape == wanted.shape, name
            np.testing.assert_allclose(found[name], wanted, rtol=rtol, atol=rtol / 10, err_msg=name)
        return found

    return check
