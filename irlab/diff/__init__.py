"""Differential checks: does a rewrite, or a pass, leave the numbers as they were?

`--check=rewrites` runs each matched piece and its replacement on small random tensors; `--check=passes` runs the whole
graph before and after each pass. Both compare relative to the largest number of a tensor, with a tolerance that its
dtype sets: a sum in another order differs by rounding.
"""

from __future__ import annotations

from .compare import ROUNDING, Difference, compare_graphs, difference
from .passes import PassDifference, check_pass
from .rewrites import RewriteChecker, check_rewrite

__all__ = [
    "ROUNDING",
    "Difference",
    "PassDifference",
    "RewriteChecker",
    "check_pass",
    "check_rewrite",
    "compare_graphs",
    "difference",
]
