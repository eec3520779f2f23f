"""How does Qualcomm's provider run a model on this machine? In its emulator of a Hexagon tensor processor.

The package onnxruntime-qnn has the emulator in its wheel for x86-64. It computes floats in half, and takes seconds for
what the processor does in milliseconds.
"""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

NAME: Final = "QNNExecutionProvider"
EMULATED: Final = {"backend_type": "htp", "soc_model": "57", "htp_arch": "75", "enable_htp_fp16_precision": "1"}
"""Options of the provider: the processor of a Snapdragon 8 Gen 3 (SM8650 and v75 in Qualcomm's QnnHtpDevice.h)."""


def installed() -> bool:
    """Whether onnxruntime-qnn is."""
    return find_spec("onnxruntime_qnn") is not None


def session(model: str | Path | bytes, *, optimized: bool = True) -> Any:
    """A session that hands `model` to QNN, and to the CPU what it does not take. ImportError without the package."""
    import onnxruntime
    import onnxruntime_qnn

    if not _devices():
        onnxruntime.register_execution_provider_library(NAME, onnxruntime_qnn.get_library_path())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_provider_for_devices(_devices()[:1], EMULATED)
    return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options)


def _devices() -> list[Any]:
    import onnxruntime

    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == NAME]


def placements(session: Any) -> Counter[tuple[str, str]]:
    """How many nodes each provider took: by provider ("QNNExecutionProvider") and op."""
    parts = session.get_provider_graph_assignment_info()
    return Counter((part.ep_name, node.op_type) for part in parts for node in part.get_nodes())
