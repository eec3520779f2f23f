"""What the tests of this backend share: write a module, run it in ONNX Runtime, compare it with the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
from runtimes import Compare, through_onnx_runtime


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """Write a module with the standard lowerings; its outputs in ONNX Runtime must be the interpreter's."""
    return through_onnx_runtime(tmp_path)
