"""The network follows the graph: whatever is changed in the IR changes what the network computes, in the same way."""

from __future__ import annotations

import numpy as np
import pytest
from mutations import MUTATIONS, inputs_of
from small_llama import Llama
from trt_networks import evaluated, legal, network_of

from irlab.interp import evaluate


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_network_follows(name: str) -> None:
    model = Llama(bias=True)
    module, inputs = model.module(), inputs_of(model)
    before = evaluate(module, inputs)["logits"].numpy()
    MUTATIONS[name](module)
    after = evaluate(module, inputs)["logits"].numpy()
    assert np.abs(after - before).max() > 1e-3, "the mutation must matter"
    network = network_of(legal(module, max_past=31), max_past=31)
    inputs = {name: value for name, value in inputs.items() if not name.startswith("past")}
    np.testing.assert_allclose(evaluated(network, inputs)["logits"], after, atol=2e-5)
    network.close()
