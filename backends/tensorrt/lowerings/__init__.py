"""The table from op class to lowering: what is said with layers of TensorRT."""

from __future__ import annotations

from irlab.backends.tensorrt.emitter import Lowering
from irlab.backends.tensorrt.lowerings import (
    arithmetic,
    attention,
    control,
    experts,
    layout,
    literals,
    neural,
    reduction,
    windows,
)
from irlab.ir import Op

LOWERINGS: dict[type[Op], Lowering] = {
    **arithmetic.LOWERINGS,
    **reduction.LOWERINGS,
    **literals.LOWERINGS,
    **layout.LOWERINGS,
    **windows.LOWERINGS,
    **neural.LOWERINGS,
    **attention.LOWERINGS,
    **experts.LOWERINGS,
    **control.LOWERINGS,
}
