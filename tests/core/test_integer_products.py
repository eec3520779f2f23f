"""Scales of tokens and zero points move behind products: the numbers stay, and products read what a runtime holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import irlab
from irlab import GraphBuilder, Module
from irlab.encodings import IntegerEncoding
from irlab.integer_products import Able, prepare
from irlab.ops import nn, prim
from irlab.types import f32, tensor
from irlab.verify import verify
from irlab.weights import Encode, Random, WeightSymbol

STATIC = Able(lambda op: op.scale > 0 and not op.zero, zero_points=False)
ZEROS = Able(lambda op: op.scale > 0, zero_points=True)
ROUNDINGS: list[dict[str, Any]] = [
    {},
    {"zero": -112},
    {"dynamic_zero": True},
    {"per": "tensor"},
    {"per": "tensor", "dynamic_zero": True},
    {"per": "tensor", "scale": 0.02},
    {"per": "tensor", "scale": 0.02, "zero": -40},
]


def two_products(options: dict[str, Any], encoding: IntegerEncoding, rank: int = 3) -> Module:
    """Two linears, one of them with a bias, that read one rounded activation."""
    b = GraphBuilder()
    lead = ("batch", "seq")[: rank - 1]
    x = nn.quantize_activation(b.input("x", "f32", (*lead, 32)), **options)
    weights = [b.weight(WeightSymbol(n, Encode(Random(tensor("f32", (r, 32)), r), encoding))) for n, r in NAMES.items()]
    bias = b.random_weight("bias", "f32", (8,))
    b.output(y=nn.linear(x, weights[0], bias), z=nn.linear(x, weights[1]))
    return b.module()


NAMES = {"v": 8, "w": 12}
ROWS = IntegerEncoding(8, True, 0, f32)


@pytest.mark.parametrize("able", [STATIC, ZEROS], ids=["static", "zeros"])
@pytest.mark.parametrize("options", ROUNDINGS, ids=str)
@pytest.mark.parametrize("rank", [2, 3])
def test_the_numbers_stay(options: dict[str, Any], able: Able, rank: int) -> None:
    module = two_products(options, ROWS, rank)
    x = np.random.default_rng(0).normal(0.3, 1, (2, 5, 32)[3 - rank :]).astype(np.float32)
    x[0] *= 20
    before = irlab.evaluate(module, {"x": x})
    prepare(module.graph, able, "test")
    verify(module)
    left = module.graph.find(nn.QuantizeActivation)
    assert left and all(able.holds(op) for op in left)
    after = irlab.evaluate(module, {"x": x})
    for name, expected in before.items():
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("encoding", [IntegerEncoding(8, True, 16, f32), IntegerEncoding(4, True, 0, f32)], ids=str)
def test_what_no_product_of_integers_reads_is_rounded_in_floats(encoding: IntegerEncoding) -> None:
    module = two_products({}, encoding)
    before = irlab.evaluate(module, {"x": np.eye(32, dtype=np.float32)[None]})
    prepare(module.graph, ZEROS, "test")
    assert not module.graph.find(nn.QuantizeActivation) and module.graph.find(prim.Round)
    after = irlab.evaluate(module, {"x": np.eye(32, dtype=np.float32)[None]})
    torch.testing.assert_close(after["y"], before["y"])


def test_other_readers_see_the_rounded_numbers() -> None:
    b = GraphBuilder()
    x = nn.quantize_activation(b.input("x", "f32", ("n", 32)))
    w = b.weight(WeightSymbol("w", Encode(Random(tensor("f32", (8, 32)), 1), ROWS)))
    b.output(y=nn.linear(x, w), same=prim.neg(x))
    module = b.module()
    given = {"x": np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)}
    before = irlab.evaluate(module, given)
    prepare(module.graph, STATIC, "test")
    after = irlab.evaluate(module, given)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-5)
