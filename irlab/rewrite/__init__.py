"""Rules, and the driver that applies them greedily until none matches.

class FuseRMSNorm(Rule):
    def pattern(self, x, w, eps): ...          # what to look for (see pattern/)
    def where(self, m: Match) -> bool | str: ...   # a last condition; a string is the reason for refusing
    def rewrite(self, m: Match) -> Value: ...      # the expression that takes its place

rewrites = rewrite(graph, [FuseRMSNorm()])
rewrites.hits["fuse-rms-norm"]

rule.py    a rule                       cycles.py  would several replacements depend on themselves?
driver.py  rules -> rewritten graph     find.py    matching alone
"""

from __future__ import annotations

from ..matching import Match
from .cycles import cycle_reason
from .driver import Observer, Rewrites, rewrite
from .find import find
from .rule import Rule, patterns_of

__all__ = ["Match", "Observer", "Rewrites", "Rule", "cycle_reason", "find", "patterns_of", "rewrite"]
