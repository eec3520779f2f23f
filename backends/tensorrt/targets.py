"""Which compute capabilities can an engine be built for, and which numbers does each one hold?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from irlab.errors import LegalityError, UsageError
from irlab.options import did_you_mean


@dataclass(frozen=True)
class Capability:
    """One compute capability: what GPUs have it, and the low-bit types that the builder compiles for it."""

    gpus: str
    types: frozenset[str]


_TURING: Final = frozenset({"int8", "int4"})
_ADA: Final = _TURING | {"fp8"}
_BLACKWELL: Final = _ADA | {"fp4"}

CAPABILITIES: Final[dict[str, Capability]] = {
    "sm75": Capability("Turing: T4, RTX 20", _TURING),
    "sm80": Capability("Ampere: A100", _TURING | {"bf16"}),
    "sm86": Capability("Ampere: A10, RTX 30", _TURING | {"bf16"}),
    "sm89": Capability("Ada: L4, L40, RTX 40", _ADA | {"bf16"}),
    "sm120": Capability("Blackwell: RTX 50, RTX PRO 6000", _BLACKWELL | {"bf16"}),
    "sm121": Capability("Blackwell: GB10", _BLACKWELL | {"bf16"}),
}
"""What tensorrt-rtx 1.7 builds for without a GPU (it has no sm90). fp8 on sm80 and fp4 on sm89 were refused by its
builder when this table was made; the other rows were built."""

DEFAULT: Final = ("sm80", "sm86", "sm89", "sm120")
"""Without an option: those of these that hold the model's types. One engine serves several."""


def require_known(targets: Sequence[str]) -> None:
    """Raise UsageError for a capability that no builder has, or one named twice."""
    for target in targets:
        if target not in CAPABILITIES:
            raise UsageError(f"tensorrt cannot build for '{target}'", did_you_mean(target, CAPABILITIES))
    if len(set(targets)) < len(targets):
        raise UsageError(f"targets={','.join(targets)} names one twice")


def choose(targets: Sequence[str], types: dict[str, str]) -> tuple[str, ...]:
    """The capabilities to build for: `targets`, or those of DEFAULT that hold `types` (type -> what needs it, for the
    message). Raises LegalityError where one that was asked for, or every one, cannot."""
    fitting = tuple(t for t in targets or DEFAULT if types.keys() <= CAPABILITIES[t].types)
    if targets and fitting != tuple(targets):
        target = next(t for t in targets if t not in fitting)
        lacking = next(name for name in types if name not in CAPABILITIES[target].types)
        able = ", ".join(name for name, row in CAPABILITIES.items() if lacking in row.types)
        raise LegalityError(
            f"{target} ({CAPABILITIES[target].gpus}) cannot hold {lacking}, the type of {types[lacking]}",
            f"targets with {lacking}: {able}",
        )
    if not fitting:
        raise LegalityError(f"no compute capability holds {', '.join(types)} together")
    return fitting
