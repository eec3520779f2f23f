"""The tables from op class to lowering: what each profile can say in ONNX."""

from __future__ import annotations

from irlab.backends.onnx.emitter import Lowering
from irlab.backends.onnx.lowerings import (
    arithmetic,
    attention,
    calls,
    control,
    hybrid,
    layout,
    microsoft,
    neural,
    windows,
)
from irlab.ir import Op

STANDARD: dict[type[Op], Lowering] = {
    **arithmetic.LOWERINGS,
    **layout.LOWERINGS,
    **windows.LOWERINGS,
    **neural.LOWERINGS,
    **attention.LOWERINGS,
    **control.LOWERINGS,
    **calls.LOWERINGS,
}
"""The portable profile: ops of opset 23 only."""

FAST: dict[type[Op], Lowering] = {**STANDARD, **microsoft.LOWERINGS, **hybrid.LOWERINGS}
"""The fast profile: what ONNX Runtime has beyond that."""
