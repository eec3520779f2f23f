"""How is a network evaluated? From its outputs back to what they need, so that only the branch taken is run.

Types, attributes and weights are read back from the INetworkDefinition. NumPy sees no 4-bit and 8-bit float weights
through TensorRT's API: for those the array that the network refers to is read instead, which is the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from irlab.backends.tensorrt.description import kind_of, layers
from irlab.backends.tensorrt.evaluator.kernels import KERNELS, stored_numbers
from irlab.backends.tensorrt.library import ILayer, ITensor
from irlab.backends.tensorrt.network import Network
from irlab.backends.tensorrt.numbers import ir_type
from irlab.errors import CheckError
from irlab.weights import numpy_dtype


class Evaluator:
    """Evaluates one network. `run` may be called often; constants are read once."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._constants: dict[str, np.ndarray] = {}
        self._producers: dict[str, ILayer] = {}
        self._conditions: dict[str, ILayer] = {}
        definition = network.definition
        for layer in layers(definition):
            if kind_of(layer) == "CONDITION":
                self._conditions[layer.conditional.name] = layer
            for i in range(layer.num_outputs):
                self._producers[layer.get_output(i).name] = layer
        self.inputs = {t.name: t for t in map(definition.get_input, range(definition.num_inputs))}
        self.outputs = [definition.get_output(i).name for i in range(definition.num_outputs)]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for `inputs`, by name. Raises CheckError where a layer does not give the type that TensorRT
        infers for it."""
        done: dict[str, Any] = {}
        for name, tensor in self.inputs.items():
            if name not in inputs:
                raise CheckError(f"the network's input '{name}' is missing")
            done[name] = _checked(np.asarray(inputs[name]), tensor, f"input '{name}'")
        stack = list(reversed(self.outputs))
        while stack:
            name = stack[-1]
            if name in done:
                stack.pop()
                continue
            layer = self._producers[name]
            missing = [needed for needed in self._needs(layer, done) if needed not in done]
            if missing:
                stack += missing
                continue
            stack.pop()
            self._evaluate(layer, done)
        return {name: done[name] for name in self.outputs}

    def _needs(self, layer: ILayer, done: Mapping[str, Any]) -> list[str]:
        if kind_of(layer) != "CONDITIONAL_OUTPUT":
            slots = [layer.get_input(i) for i in range(layer.num_inputs)]
            return [tensor.name for tensor in slots if tensor is not None]
        condition = self._conditions[layer.conditional.name].get_input(0).name
        if condition not in done:
            return [condition]
        return [condition, layer.get_input(0 if done[condition] else 1).name]

    def _evaluate(self, layer: ILayer, done: dict[str, Any]) -> None:
        kind = kind_of(layer)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        if kind == "CONSTANT":
            results = [self._constant(layer)]
        elif kind == "CONDITIONAL_OUTPUT":
            chosen = 0 if done[self._conditions[layer.conditional.name].get_input(0).name] else 1
            results = [done[layer.get_input(chosen).name]]
        else:
            slots = [layer.get_input(i) for i in range(layer.num_inputs)]
            operands = [None if tensor is None else done[tensor.name] for tensor in slots]
            if kind == "ATTENTION_INPUT":  # a boundary: hands all operands on to the other one
                done[outputs[0].name] = operands
                return
            kernel = KERNELS.get(kind)
            if kernel is None:
                raise CheckError(f"layer '{layer.name}': the evaluator does not know {kind}")
            with np.errstate(all="ignore"):
                results = kernel(layer, operands)
        for tensor, result in zip(outputs, results):
            done[tensor.name] = _checked(result, tensor, f"layer '{layer.name}'")

    def _constant(self, layer: ILayer) -> np.ndarray:
        if layer.name not in self._constants:
            kept = self._network.arrays[layer.name]
            self._constants[layer.name] = stored_numbers(layer, kept)
        return self._constants[layer.name]


def _checked(array: Any, tensor: ITensor, what: str) -> np.ndarray:
    """The array in the dtype of `tensor`, whose known sizes it must have."""
    found: np.ndarray = np.asarray(array)
    shape = tuple(tensor.shape)
    if len(shape) != found.ndim or any(0 <= n != d for n, d in zip(shape, found.shape)):
        raise CheckError(f"{what} gives {list(found.shape)} where TensorRT infers {list(shape)}")
    dtype = ir_type(tensor.dtype)
    return found if dtype is None else found.astype(numpy_dtype(dtype), copy=False)
