"""Every scheme of quantize, to nearest, on the trained weights of the demo model."""

from __future__ import annotations

import numpy as np
import pytest

import irlab
from irlab import Module
from irlab.encodings import SCHEMES, scheme_encoding
from irlab.weights import Encode

NAME = "model.layers.1.mlp.down_proj.weight"

BOUNDS = {
    "int2": 0.2, "int3": 0.04, "int4": 0.01, "int5": 0.003, "int6": 6e-4, "int8": 4e-5,
    "nf4": 0.012, "codebook2": 0.2, "codebook3": 0.05, "codebook4": 0.015, "codebook5": 0.005, "codebook6": 0.002,
    "fp8": 0.001, "fp8_e5m2": 0.004, "mxfp4": 0.02, "mxfp6": 0.002, "mxfp8": 0.001, "nvfp4": 0.012,
    "q4_0": 0.01, "q4_1": 0.008, "q5_0": 0.003, "q5_1": 0.002, "q8_0": 4e-5, "iq4_nl": 0.008,
    "q2_k": 0.09, "q3_k": 0.03, "q4_k": 0.007, "q5_k": 0.002, "q6_k": 5e-4, "iq4_xs": 0.009,
    "tq1_0": 0.35, "tq2_0": 0.35,
    "iq2_s": 0.12, "iq3_xxs": 0.06, "iq3_s": 0.04,
}  # fmt: skip
"""The squared error, over the squared numbers of a matrix, at most. IQ1 and the smaller IQ2 need importances."""


@pytest.fixture(scope="module")
def demo() -> Module:
    return irlab.run(irlab.load("demo"), "fuse")


@pytest.mark.parametrize("scheme", BOUNDS)
def test_the_error_of_trained_weights_is_within_the_bound(demo: Module, scheme: str) -> None:
    recipe = demo.weights[NAME].recipe
    x = recipe.read().astype(np.float32)
    encoding = scheme_encoding(scheme)
    y = encoding.decode(encoding.encode(x))
    assert ((x - y) ** 2).sum() < BOUNDS[scheme] * (x**2).sum()


def test_only_the_schemes_that_need_importances_are_left_out() -> None:
    assert set(SCHEMES) - set(BOUNDS) == {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs"}


@pytest.mark.parametrize("scheme", ["nf4", "codebook4", "fp8", "mxfp8", "nvfp4", "q5_1", "iq4_nl"])
def test_the_model_computes_nearly_what_it_did(demo: Module, scheme: str) -> None:
    module = irlab.run(demo.clone(), f"quantize{{scheme={scheme}}}")
    encoded = [symbol for symbol in module.weights.values() if symbol.type.encoding is not None]
    assert encoded and all(isinstance(symbol.recipe, Encode) for symbol in encoded)
    ids = {"input_ids": np.arange(20, 52)[None]}
    before, after = (irlab.evaluate(m, ids)["logits"].float().numpy() for m in (demo, module))
    log_p, log_q = (x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)
                    for x in (before, after))  # fmt: skip
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
    assert 0 < kl < (0.02 if scheme in ("fp8", "mxfp8", "q5_1") else 0.15)
