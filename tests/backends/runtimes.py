"""Ways to run a module that a backend wrote, and to compare what comes out with the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irlab.errors import LegalityError
from irlab.ir import Module
from irlab.types import bool_

Compare = Callable[..., dict[str, np.ndarray]]
BITWISE = ("prim.and", "prim.or", "prim.xor")
"""What TensorRT has for bool only."""


def through_onnx_runtime(tmp_path: Path) -> Compare:
    from irlab.backends.onnx.emitter import Emitter
    from irlab.backends.onnx.lowerings import STANDARD
    from irlab.backends.onnx.writer import MODEL_FILE, write_model
    from irlab.interp import evaluate
    from irlab.weights import read_alone

    def check(module: Module, inputs: Mapping[str, Any], rtol: float = 1e-4) -> dict[str, np.ndarray]:
        import onnxruntime

        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        expected = evaluate(module, arrays)
        directory = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        for reading in write_model(module, Emitter(STANDARD), directory):
            read_alone(reading)
        session = onnxruntime.InferenceSession(str(directory / MODEL_FILE), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, arrays)))
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            wanted = tensor.detach().numpy()
            assert found[name].dtype == wanted.dtype and found[name].shape == wanted.shape, name
            np.testing.assert_allclose(found[name], wanted, rtol=rtol, atol=rtol / 10, err_msg=name)
        return found

    return check


def through_tensorrt(tmp_path: Path) -> Compare:
    from irlab.backends.tensorrt import library

    if library.missing():
        pytest.skip(library.missing())

    from irlab.backends.tensorrt import legalise
    from irlab.backends.tensorrt.evaluator import Evaluator
    from irlab.backends.tensorrt.network import build_to, lower
    from irlab.backends.tensorrt.profiles import Limits, Span
    from irlab.interp import evaluate

    sizes = {name: Span(1, 4, 16) for name in ("n", "m")}

    def check(module: Module, inputs: Mapping[str, Any], rtol: float = 1e-4) -> dict[str, np.ndarray]:
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        expected = evaluate(module, arrays)
        if any(op.opname in BITWISE and op.result.type.dtype is not bool_ for op in module.graph.ops()):
            with pytest.raises(LegalityError, match="bits of integers"):
                legalise.check(module.graph)
            return {name: tensor.numpy() for name, tensor in expected.items()}
        legalise.check(module.graph)
        network = lower(module, Limits(others=sizes).resolved(64))
        found = Evaluator(network).run(arrays)
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            wanted = tensor.detach().numpy()
            assert found[name].dtype == wanted.dtype and found[name].shape == wanted.shape, name
            np.testing.assert_allclose(found[name], wanted, rtol=rtol, atol=rtol / 10, err_msg=name)
        assert build_to(network, ("sm80",), tmp_path / "model.engine") > 1000
        network.close()
        return found

    return check
