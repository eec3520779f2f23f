"""On a GPU the interpreter, calibration and evaluation give what they give on the CPU. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import irlab
from irlab import Context, Module
from irlab.calibration import Sample
from irlab.quality import Quality, quality

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TEXT = "Once upon a time there was a little dog who liked to play in the garden with a red ball. " * 60


@pytest.fixture(scope="module")
def demo() -> Module:
    return irlab.run(irlab.load("demo"), "fuse,cast{dtype=f32}")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT)
    return file


def measured(module: Module, text: Path, device: str, original: Module | None = None) -> Quality:
    batches = Sample(str(text), 512, 128).batches(module, 0)
    return quality(module, batches, Context(device=device), original)


def test_logits_are_those_of_the_cpu(demo: Module) -> None:
    ids = torch.arange(1, 65).reshape(1, -1)
    on_cpu = irlab.evaluate(demo, {"input_ids": ids})["logits"]
    on_gpu = irlab.evaluate(demo, {"input_ids": ids}, device="cuda")["logits"]
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)


def test_greedy_tokens_are_those_of_the_cpu(demo: Module) -> None:
    from irlab.decoder import greedy

    cached = irlab.run(demo, "kv-cache")
    assert greedy(cached, [1, 5, 9], 24, device="cuda") == greedy(cached, [1, 5, 9], 24)


@pytest.mark.parametrize("method", ["gptq", "awq-gptq"])
def test_a_calibrated_model_is_as_good_as_one_of_the_cpu(demo: Module, text: Path, tmp_path: Path, method: str) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        quantized = irlab.run(
            demo,
            f"quantize{{method={method} scheme=int4 group=32}}",
            device=device,
            calibration=str(text),
            calibration_tokens=1024,
            calibration_length=128,
            cache_dir=tmp_path / device,
        )
        kl = measured(quantized, text, device, demo).kl
        assert kl is not None
        losses[device] = kl
    assert np.isclose(losses["cuda"], losses["cpu"], rtol=0.25)


def test_perplexity_is_that_of_the_cpu(demo: Module, text: Path) -> None:
    found = [measured(demo, text, device).perplexity for device in ("cpu", "cuda")]
    assert np.isclose(*found, rtol=1e-3)
