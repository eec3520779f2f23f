"""The file follows the graph: whatever is changed in the IR changes what ONNX Runtime computes, in the same way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mutations import MUTATIONS, inputs_of
from onnx_files import run_directory, write
from small_llama import Llama

from irlab.interp import evaluate


@pytest.mark.parametrize("profile", ["fast", "portable"])
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_file_follows(name: str, profile: str, tmp_path: Path) -> None:
    model = Llama(bias=True)
    module, inputs = model.module(), inputs_of(model)
    before = evaluate(module, inputs)["logits"].numpy()
    MUTATIONS[name](module)
    after = evaluate(module, inputs)["logits"].numpy()
    assert np.abs(after - before).max() > 1e-3, "the mutation must matter"
    write(module, tmp_path / "out", profile=profile)
    np.testing.assert_allclose(run_directory(tmp_path / "out", inputs)["logits"], after, atol=2e-5)
