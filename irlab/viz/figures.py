"""What did passes measure of single layers? Their records, turned to figures that pictures can show."""

from __future__ import annotations

from collections.abc import Iterable

from ..passmgr import PassRecord


def layer_figures(records: Iterable[PassRecord]) -> dict[str, dict[str, float]]:
    """By name of the figure ("weight_error"), its value by weight name or module path; of several passes that measured
    the same, the last, whose result is what there is."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        for layer, figures in record.layers.items():
            for name, value in figures.items():
                found.setdefault(name, {})[layer] = value
    return found
