"""What may a file for one provider say? The words that its provider takes, in the dtype that the module computes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from irlab.backends.onnx.providers import PROVIDERS, Blocks, Provider
from irlab.types import DType, f32

_OF_RUNTIME: Final = ("ms:", "SimplifiedLayerNormalization")
"""Ops that are ONNX Runtime's own."""


@dataclass(frozen=True)
class Vocabulary:
    """A provider and a dtype; `portable` leaves the ops of ONNX Runtime itself out."""

    provider: Provider
    portable: bool = False
    dtype: DType = f32

    @property
    def opset(self) -> int:
        return self.provider.opset

    def has(self, op: str, dtype: DType | None = None) -> bool:
        """Whether a file may use `op` ("Gelu", "ms:MatMulNBits") on `dtype`, or the dtype of the module."""
        if self.portable and op.startswith(_OF_RUNTIME):
            return False
        return self.provider.takes(op, dtype or self.dtype)

    @property
    def zero_points(self) -> bool:
        """Whether integers may have zero points."""
        return self.provider.blocks != "signed"

    @property
    def blocks(self) -> Blocks:
        """How weights of few bits are stored."""
        blocks = self.provider.blocks
        return "dequantize" if blocks == "nbits" and not self.has("ms:MatMulNBits") else blocks


FAST: Final = Vocabulary(PROVIDERS["cpu"])
PORTABLE: Final = Vocabulary(PROVIDERS["cpu"], portable=True)
"""The two profiles of the CPU provider."""
