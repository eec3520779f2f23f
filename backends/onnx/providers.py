"""Which execution providers can the backend write for, and what do their kernels take?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from irlab.errors import UsageError


@dataclass(frozen=True)
class Provider:
    """One execution provider of ONNX Runtime: its name there, and whether files for it were checked in it."""

    runtime_name: str
    written_for: bool


PROVIDERS: Final[dict[str, Provider]] = {
    "cpu": Provider("CPUExecutionProvider", True),
    "cuda": Provider("CUDAExecutionProvider", False),
    "dml": Provider("DmlExecutionProvider", False),
    "webgpu": Provider("WebGpuExecutionProvider", False),
    "nvtensorrtrtx": Provider("NvTensorRTRTXExecutionProvider", False),
    "qnn": Provider("QNNExecutionProvider", False),
    "openvino": Provider("OpenVINOExecutionProvider", False),
}
"""The providers that onnxruntime-genai knows. A file for `cpu` loads in others as far as they have its ops."""


def require_provider(ep: str) -> Provider:
    """The provider called `ep`; UsageError where irlab does not write for it."""
    found = PROVIDERS.get(ep)
    if found is None or not found.written_for:
        ready = ", ".join(name for name, provider in PROVIDERS.items() if provider.written_for)
        what = "not written for yet" if found else "unknown"
        raise UsageError(f"the execution provider '{ep}' is {what}", f"ep={ready}; its files load in others too")
    return found
