"""What one run of a pass did: for reports, timing and tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..ir import Module
from ..timing import Span

if TYPE_CHECKING:
    from ..weights import Recipe


@dataclass
class PassRecord:
    """What one run of a pass did. Bytes are of stored weights; `rules` counts hits by rule.

    `text` is the pass with its options, as a pipeline has it. `layers` says, by weight, what a lossy pass cost:
    "weight_error" and "output_error" (relative), "bits" per weight (see weight_errors.py).
    """

    name: str
    text: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rewrites: int = 0
    weights_computed: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    ops_before: int = 0
    ops_after: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    rule_seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Wall and CPU seconds of each rule that was timed."""
    metrics: dict[str, float] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)
    """What was measured step by step: the loss of a training, say."""
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    """What was measured of single layers: figures by name, by module path or weight name. Where that would cost more
    than the pass itself it is measured only for --report and --eval (weight_errors.py)."""
    plan: dict[str, Any] = field(default_factory=dict)
    """What the pass decided before it changed anything, where it decides by looking at the whole module."""

    def note_span(self, span: Span) -> None:
        """Take over the times of a pass that ran, and tell its span what it did, rule by rule."""
        self.seconds, self.cpu_seconds = span.seconds, span.cpu_seconds
        span.rewrites, span.weights_computed = self.rewrites, self.weights_computed
        span.ops = (self.ops_before, self.ops_after)
        names = sorted(
            {*self.rules, *self.rule_seconds}, key=lambda name: self.rule_seconds.get(name, (0.0,)), reverse=True
        )
        for name in names:
            span.children.append(Span(name, *self.rule_seconds.get(name, (0.0, 0.0)), rewrites=self.rules.get(name, 0)))

    def as_dict(self) -> dict[str, Any]:
        """For `--report`."""
        out = {key: value for key, value in vars(self).items() if key not in ("rule_seconds", "metrics")}
        return out | self.metrics


def recipes(module: Module) -> dict[str, Recipe]:
    """What every weight is made by, to see whether a pass changed one."""
    return {name: symbol.recipe for name, symbol in module.weights.items()}


def stored_bytes(module: Module) -> int:
    """The bytes that the module's weights take as stored: the codes of encoded ones."""
    return sum(symbol.size_bytes for symbol in module.weights.values())
