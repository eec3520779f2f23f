"""The evaluator computes what the definition says: a layer that is changed there changes what comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from small_llama import Llama
from trt_networks import evaluated, legal, network_of

from irlab.backends.tensorrt import library
from irlab.backends.tensorrt.description import describe, kind_of, layers
from irlab.encodings import IntegerEncoding
from irlab.errors import CheckError

if library.missing():
    pytest.skip(library.missing(), allow_module_level=True)

trt = library.load()
PROMPT = {
    "input_ids": np.array([[3, 7, 9, 20, 4]]),
    "position_ids": np.arange(5)[None],
    "attention_mask": np.ones((1, 5), np.int64),
}


def set_to(attribute: str, value: Any) -> Callable[[Any], None]:
    return lambda layer: setattr(layer, attribute, value)


CHANGES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "another operation": ("ELEMENTWISE", set_to("op", trt.ElementWiseOperation.MAX)),
    "rope pairs": ("ROTARY_EMBEDDING", set_to("interleaved", True)),
    "an untransposed square weight": ("MATRIX_MULTIPLY", set_to("op1", trt.MatrixOperation.NONE)),
    "another reduction": ("REDUCE", set_to("op", trt.ReduceOperation.MAX)),
    "another function": ("UNARY", set_to("op", trt.UnaryOperation.ABS)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_layer_shows(name: str) -> None:
    kind, change = CHANGES[name]
    legalised = legal(Llama(layers=1, hidden=64, kv_heads=4).module(), max_past=15)
    network = network_of(legalised, max_past=15)
    before, described = evaluated(network, PROMPT)["logits"], describe(network)
    # The last of its kind that can bear the change: shapes must stay as they are.
    found = [
        layer
        for layer in layers(network.definition)
        if kind_of(layer) == kind and (layer.get_output(0).dtype == trt.float32)
    ]
    wanted = [
        la for la in found if name != "an untransposed square weight" or tuple(la.get_input(1).shape[-2:]) == (64, 64)
    ]
    change(wanted[-1])
    assert describe(network) != described
    after = evaluated(network, PROMPT)["logits"]
    assert np.abs(after - before).max() > 1e-4
    network.close()


def test_a_changed_code_shows() -> None:
    """Constants are the memory that the network refers to."""
    model = Llama(layers=1, encoding=IntegerEncoding(4, True, 32))
    network = network_of(legal(model.module(), max_past=15), max_past=15)
    described = describe(network)
    before = evaluated(network, PROMPT)["logits"]
    network.arrays["head"][:] ^= 0x11
    assert np.abs(evaluated(network, PROMPT)["logits"] - before).max() > 1e-3
    assert describe(network) != described
    network.close()


def test_a_type_that_does_not_fit_is_refused() -> None:
    network = network_of(legal(Llama(layers=1).module(), max_past=15), max_past=15)
    with pytest.raises(CheckError, match=r"input 'past_key_values.0.key' gives \[1, 2, 4, 16\] where TensorRT infers"):
        evaluated(network, PROMPT | {"past_key_values.0.key": np.zeros((1, 2, 4, 16), np.float32)})
    network.close()


def test_a_branch_that_is_not_taken_is_not_run() -> None:
    from irlab import GraphBuilder
    from irlab.dims import symbol
    from irlab.ops import prim
    from irlab.ops.control import if_
    from irlab.types import i64

    def branch(stop: int) -> Any:
        b = GraphBuilder()
        x = b.input("x", "f32", ("batch", 4))
        y = prim.mul(x, prim.constant(float(stop), x.type.dtype))
        b.output(y=prim.gather(y, prim.constant(stop, i64, (2,)), 0))
        return b.module().graph

    b = GraphBuilder()
    x = b.input("x", "f32", ("batch", 4))
    many = prim.gt(prim.dim(x, 0), prim.constant(2, i64))
    assert x.type.shape[0] is symbol("batch")
    # The branch not taken reads row 3, which does not exist.
    b.output(y=if_(many, (x,), branch(3), branch(1))[0])
    network = network_of(legal(b.module()))
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(evaluated(network, {"x": rows})["y"], rows[[1, 1]])
    network.close()
