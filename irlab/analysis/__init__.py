"""What is known about a model from running it? Statistics per weight, collected layer by layer, shared and cached.

    statistics = ctx.analysis(InputHessian)           # in a pass; collected once for a module and calibration
    statistics["model.layers.0.mlp.up_proj.weight"].matrix

A pass that changes weights by what it learns derives from `LayerPass` (sweep.py) and is handed the statistics of each
layer as the layers before it have become.
"""

from __future__ import annotations

from .base import A, Analysis, Columns, Doubles, GradientAnalysis, RowAnalysis
from .by_weight import ByWeight, LayerStatistics, Rescaled
from .gradients import OutputGradient, TableGradient
from .inputs import InputHessian, InputStatistics, OriginalInputs

__all__ = [
    "A",
    "Analysis",
    "ByWeight",
    "Columns",
    "Doubles",
    "GradientAnalysis",
    "InputHessian",
    "InputStatistics",
    "LayerStatistics",
    "OriginalInputs",
    "OutputGradient",
    "Rescaled",
    "RowAnalysis",
    "TableGradient",
]
