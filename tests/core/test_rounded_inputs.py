"""What half precision changes is what llama.cpp differs by, and the parity gate allows no more than that."""

from __future__ import annotations

from pathlib import Path

import pytest

import irlab
from irlab import Module
from irlab.backends.gguf import GGUF
from irlab.errors import CheckError
from irlab.rounded_inputs import rounding_error, with_rounded_inputs


@pytest.fixture(scope="module")
def demo() -> Module:
    return irlab.run(irlab.load("demo"), "fuse")


def test_it_is_what_a_runtime_differs_by(demo: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GGUF, "float_tolerance", lambda *_: 1e-4)
    parity = irlab.emit(demo, "gguf", tmp_path / "m.gguf", parity=True).parity
    assert 0.01 < parity.details["rounding"] < 0.1
    assert parity.max_abs_logit_diff == pytest.approx(parity.details["rounding"], rel=0.5)


def test_where_nothing_is_rounded_nothing_is_allowed(
    demo: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = irlab.run(demo, "cast{dtype=f32}")
    assert with_rounded_inputs(exact) is None and rounding_error(exact, [[1, 2, 3]]) == 0
    monkeypatch.setattr(GGUF, "float_tolerance", lambda *_: 1e-9)
    with pytest.raises(CheckError, match="logits differ"):
        irlab.emit(exact, "gguf{type=f32}", tmp_path / "m.gguf", parity=True)
