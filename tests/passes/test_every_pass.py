"""Every registered pass, on random graphs and random decoders: the outputs stay, as exactly as the pass declares."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import HealthCheck, assume, event, given, settings

from irlab import Module, registry
from irlab.errors import InputError
from irlab.schedule import build_pipeline
from irlab.testing import CannotRun, assert_preserves
from irlab.testing.strategies import decoders, runnable_modules

OPTIONS: Final = {
    "drop-layers": ("drop-layers{indices=0}",),
    "prune-channels": ("prune-channels{ratio=0.5}",),
    "prune-heads": ("prune-heads{ratio=0.5 score=magnitude refit=false}",),
    "prune-hidden": ("prune-hidden{ratio=0.5 method=select multiple=1}",),
    "prune-neurons": ("prune-neurons{ratio=0.5 score=magnitude refit=false multiple=1}",),
    "cast": ("cast{dtype=bf16}", "cast{dtype=f32}"),
    "mixed-precision": ("fuse,mixed-precision{bpw=16}",),
    "quantize": (
        "fuse,quantize{group=0}",
        "fuse,quantize{scheme=int8 group=16 embeddings=int8 indivisible=keep}",
    ),
    "prune-vocab": ('prune-vocab{keep="ids.json"}',),
    "repeat": ("repeat{n=3}(canonicalize,cse)",),
    "tie-layers": ("fuse,tie-layers{groups=0-1}",),
    "share-weights": ("fuse,share-weights{method=k-means per=1row}",),
    "low-rank": ("fuse,low-rank{method=svd ratio=0.1 multiple=1}", "fuse,low-rank{method=svd rank=64}"),
    "sparsify": ("fuse,sparsify{method=magnitude}",),
    "strip-unused": ("strip-unused", "strip-unused{inputs=false}"),
}
"""Pipelines to try for passes whose options matter; others run as they are."""

NEW_INTERFACE: Final = {"kv-cache", "cast", "strip-unused"}
"""Passes that change inputs or outputs: their outputs are compared by name."""

PIPELINES: Final = [text for name in registry.names("passes") for text in OPTIONS.get(name, (name,))]


def check(pipeline: str, module: Module) -> None:
    names = {step.name for step in build_pipeline(pipeline)}
    outputs = tuple(module.graph.outputs) if names & NEW_INTERFACE else None
    try:
        assert_preserves(pipeline, module, outputs=outputs, atol=1e-4)
    except CannotRun:
        assume(False)
    except InputError as refusal:  # a pass may refuse a module, in one line
        assert "\n" not in refusal.message
        event(f"refused: {refusal.message.split(':')[0]}")


@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(module=runnable_modules())
def test_on_random_graphs(pipeline: str, module: Module) -> None:
    check(pipeline, module)


@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(module=decoders())
def test_on_random_decoders(pipeline: str, module: Module) -> None:
    check(pipeline, module)
