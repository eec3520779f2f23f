"""What most tests of passes begin with: the demo model, fused, and tokens to calibrate it on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import irlab
from irlab import Module


@pytest.fixture(scope="module")
def module() -> Module:
    """The demo model in f32, so that differences are those of the pass."""
    return irlab.run(irlab.load("demo"), "fuse,cast{dtype=f32}")


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    """Eight rows of 32 tokens."""
    return np.random.default_rng(0).integers(0, 1024, (8, 32))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all tests of a file, so that statistics are collected once."""
    return tmp_path_factory.mktemp("cache")
