"""Integers in groups, calibrated, against rounding to nearest and against our own rounding with a search of scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from quality_rows import Row
from quality_subjects import Subject

import irlab
from irlab import Module
from irlab.encodings import IntegerEncoding
from irlab.floats import as_f32
from irlab.types import f16
from irlab.weight_uses import replace_weights
from irlab.weights import Array, WeightSymbol

GROUP = 32


def rounding_rows(subject: Subject, schemes: Sequence[str], methods: Sequence[str]) -> Iterator[Row]:
    """Each scheme, symmetric and not, by each method."""
    for scheme in schemes:
        for symmetric in (True, False):
            options = f"scheme={scheme} group={GROUP} sym={str(symmetric).lower()}"
            peers = {
                "rounding": spanned(subject.module, int(scheme[3:]), symmetric),
                "our rounding with searched scales": irlab.run(subject.module, f"quantize{{{options}}}"),
            }
            losses = {peer: subject.loss(module) for peer, module in peers.items()}
            for method in methods:
                new, seconds = subject.run(f"quantize{{{options} method={method}}}")
                ours = subject.loss(new)
                title = f"{subject.name} {scheme} g{GROUP} {'sym' if symmetric else 'asym'} {method}"
                for peer, lost in losses.items():
                    yield Row(title, subject.metric, ours, peer, lost, cpu_seconds=seconds)


def spanned(module: Module, bits: int, symmetric: bool) -> Module:
    """`module` with every matrix that quantize would encode rounded under scales that span each group."""
    new = module.clone()
    chosen = irlab.run(module, f"quantize{{scheme=int{bits} group={GROUP}}}").weights
    symbols = {}
    for name, symbol in module.weights.items():
        if chosen[name].type.encoding is not None:
            weight = symbol.recipe.read()
            rounded = round_to_span(as_f32(weight), bits, symmetric).astype(weight.dtype)
            symbols[name] = WeightSymbol(name, Array(symbol.type, rounded))
    replace_weights(new.graph, symbols)
    return new


def round_to_span(weight: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    """f32[out, in] rounded in groups: from -max to max, or from the smallest (at most 0) to the largest number."""
    encoding = IntegerEncoding(bits, symmetric, GROUP, f16)
    groups = weight.reshape(len(weight), -1, GROUP)
    if symmetric:
        scale = np.abs(groups).max(-1, keepdims=True) / encoding.highest
        zero = np.zeros_like(scale)
    else:
        low, high = np.minimum(groups.min(-1, keepdims=True), 0), np.maximum(groups.max(-1, keepdims=True), 0)
        scale = (high - low) / encoding.highest
        zero = np.rint(-low / np.where(scale == 0, 1, scale))
    scale = scale.astype(np.float16).astype(np.float32)
    steps = np.rint(groups / np.where(scale == 0, 1, scale)) + zero
    return ((np.clip(steps, encoding.lowest, encoding.highest) - zero) * scale).reshape(weight.shape)
