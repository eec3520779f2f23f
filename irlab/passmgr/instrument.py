"""What watches passes: hooks around each, and progress within."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..ir import Module, Value

if TYPE_CHECKING:
    from ..rewrite import Match, Rule
    from .passes import Pass
    from .record import PassRecord


class Instrument:
    """Watches the manager. All hooks do nothing here; instruments override what they need."""

    def begin(self, module: Module) -> None:
        """Called once with what the passes are given, also where there are none."""

    def before_pass(self, step: Pass, module: Module) -> None:
        """Called before each pass, outermost first for nested pipelines."""

    def after_pass(self, step: Pass, module: Module, record: PassRecord) -> None:
        """Called after each pass that succeeded."""

    def pass_failed(self, step: Pass, module: Module, error: Exception) -> None:
        """Called when a pass, or an instrument after it, raised."""

    def on_rewrite(self, rule: Rule, match: Match, values: tuple[Value, ...]) -> None:
        """Called for each rewrite, while the matched ops are still in place, if `wants_rewrites`."""

    wants_rewrites: bool = False


class Progress:
    """Reports long work; the CLI puts rich's bars behind it. The base is silent."""

    def track(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
        """`items`, with progress shown."""
        return items
