"""Lower modules to networks of TensorRT, evaluate them layer by layer, and build them on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irlab.backends.tensorrt import TensorRT
from irlab.backends.tensorrt.evaluator import Evaluator
from irlab.backends.tensorrt.network import Network, build_to, lower
from irlab.backends.tensorrt.numbers import ir_type
from irlab.interp import evaluate
from irlab.ir import Module
from irlab.passmgr import Context
from irlab.verify import verify
from irlab.weights import numpy_dtype


def legal(module: Module, **options: Any) -> Module:
    """The module as the backend would write it."""
    legalised = TensorRT(**options).legalise(module.clone(), Context(targets=("tensorrt",)))
    verify(legalised)
    return legalised


def network_of(legalised: Module, **options: Any) -> Network:
    """The network of a legalised module."""
    return lower(legalised, TensorRT(**options).limits(legalised))


def evaluated(network: Network, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The outputs of a network in the evaluator; caches that are missing are empty."""
    evaluator = Evaluator(network)
    given = {name: np.asarray(value) for name, value in inputs.items()}
    batch = next((len(value) for value in given.values() if value.ndim), 1)
    for name, tensor in evaluator.inputs.items():
        if name not in given:
            dtype = ir_type(tensor.dtype)
            assert dtype is not None
            _, heads, length, width = tensor.shape
            given[name] = np.zeros((batch, heads, max(0, length), width), numpy_dtype(dtype))
    return evaluator.run(given)


def check(
    module: Module,
    inputs: Mapping[str, Any],
    tolerance: float = 1e-4,
    build_in: Path | None = None,
    targets: Sequence[str] = ("sm80",),
    **options: Any,
) -> dict[str, np.ndarray]:
    """What the network of `module` computes, which must be what the interpreter makes of the legalised module, within
    `tolerance` of the largest number. `build_in`: also build the engine for `targets` in that directory."""
    legalised = legal(module, **options)
    network = network_of(legalised, **options)
    expected = evaluate(legalised, dict(inputs))
    found = evaluated(network, inputs)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        wanted = tensor.detach().float().numpy() if tensor.is_floating_point() else tensor.numpy()
        got = found[name].astype(np.float32) if tensor.is_floating_point() else found[name]
        if name.startswith("present.") and got.shape != wanted.shape:  # a buffer: what lies beyond is not used
            got = got[:, :, : wanted.shape[2]]
        assert got.shape == wanted.shape, name
        size = max(1.0, float(np.abs(np.where(np.isfinite(wanted), wanted, 0)).max(initial=0)))
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * size, err_msg=name)
    if build_in is not None:
        assert build_to(network, targets, build_in / "model.engine") > 1000
    network.close()
    return found
