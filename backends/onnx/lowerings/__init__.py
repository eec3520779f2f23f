"""The tables from op class to lowering: what each profile can say in ONNX."""

from __future__ import annotations

from irlab.backends.onnx.emitter import Lowering
from irlab.backends.onnx.lowerings import arithmetic, calls, control, layout, neural, windows
from irlab.ir import Op

STANDARD: dict[type[Op], Lowering] = {
    **arithmetic.LOWERINGS,
    **layout.LOWERINGS,
    **windows.LOWERINGS,
    **neural.LOWERINGS,
    **control.LOWERINGS,
    **calls.LOWERINGS,
}
"""Ops of opset 23 only."""
