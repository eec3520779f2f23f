"""The pass that gives each weight the scheme that a size allows.

mixed_precision.py   the pass: from a size to schemes     choices.py   what a weight may be stored as
sizes.py             how large files become               losses.py    what a scheme costs in quality
probe.py             the same, by running the model       knapsack.py  the best choice that fits
plan.py              what was chosen, as table and as options
"""

from irlab.passes.mixed_precision.mixed_precision import MixedPrecision

__all__ = ["MixedPrecision"]
