"""What does it really cost to encode one weight? The model is run with it, on some of the calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final

from irlab.activations import Activations
from irlab.calibration import Batch
from irlab.encodings import Encoding
from irlab.ir import Module
from irlab.passes.quantize.selection import encode_weights
from irlab.passmgr import Context
from irlab.quality import Logits, quality

TOKENS: Final = 4096
"""About so many are run."""


class Probe:
    """Runs of `module` with some weights rounded to nearest. The original runs once."""

    def __init__(self, module: Module, ctx: Context) -> None:
        self._module, self._ctx = module, ctx

    def divergence(self, encodings: Mapping[str, Encoding]) -> float:
        """The KL divergence that these encodings alone cause, in nats a token."""
        changed = self._module.clone()
        encode_weights(changed.graph, encodings)
        found = quality(changed, self._batches, self._ctx, self._original).kl
        assert found is not None, "there is an original"
        return found

    @cached_property
    def _batches(self) -> list[Batch]:
        taken: list[Batch] = []
        for batch in self._ctx.calibration_batches(self._module):
            if sum(each["input_ids"].size for each in taken) < TOKENS:
                taken.append(batch)
        return taken

    @cached_property
    def _original(self) -> Logits:
        return Logits(self._module.clone().graph, self._batches, self._ctx, Activations())
