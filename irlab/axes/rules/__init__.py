"""How do axes go through ops? A table by op class: which axes of operands and results are one and the same.

A rule is given the op and the axes of its operands, equates what moves together, and gives the axes of the results.
Ops of the nn dialect without a rule go by their decomposition, and what nothing is known of keeps its sizes.
"""

from . import contraction, control, elementwise, layout, neural
from .base import (
    ACTIVATED,
    CONVOLVED,
    HEAD_FEATURES,
    INDEXED,
    KV_HEADS,
    QUERY_HEADS,
    RULES,
    VALUE_FEATURES,
    At,
    Axes,
    Rule,
    broadcast,
    fresh,
    keep_sizes,
    rule,
    rule_of,
)

__all__ = [
    "ACTIVATED",
    "CONVOLVED",
    "HEAD_FEATURES",
    "INDEXED",
    "KV_HEADS",
    "QUERY_HEADS",
    "RULES",
    "VALUE_FEATURES",
    "At",
    "Axes",
    "Rule",
    "broadcast",
    "contraction",
    "control",
    "elementwise",
    "fresh",
    "keep_sizes",
    "layout",
    "neural",
    "rule",
    "rule_of",
]
