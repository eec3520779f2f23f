"""How does a network generate? Step by step in the evaluator, with its caches as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from irlab.backends.tensorrt.evaluator.run import Evaluator
from irlab.backends.tensorrt.interface import Interface, Port, small_inputs
from irlab.backends.tensorrt.network import Network
from irlab.backends.tensorrt.numbers import ir_type
from irlab.floats import as_f32
from irlab.weights import numpy_dtype


class NetworkSession:
    """A decoder's network, evaluated layer by layer."""

    def __init__(self, network: Network) -> None:
        self.interface = Interface.of(network)
        self._evaluator = Evaluator(network)
        self._cache: dict[str, np.ndarray] = {}
        self.forget()

    def forget(self) -> None:
        ports = {port.name: port for port in self.interface.inputs}
        self._cache = {name: self._empty(ports[name]) for name in self.interface.caches}

    def _empty(self, port: Port) -> np.ndarray:
        _, heads, length, width = port.shape
        dtype = ir_type(self._evaluator.inputs[port.name].dtype)
        assert dtype is not None
        return np.zeros((1, heads, max(0, length), width), numpy_dtype(dtype))

    def step(self, tokens: Sequence[int], past: int) -> np.ndarray:
        results = self._evaluator.run({**small_inputs(self.interface, tokens, past), **self._cache})
        self._cache = {name: results[output] for name, output in self.interface.caches.items()}
        logits: np.ndarray = as_f32(results["logits"])[0]
        return logits
