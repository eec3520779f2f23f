"""How near a pattern, given as data, comes to matching at one op after another."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import IrlabError
from ..forms import forms
from ..ir import Op, place_of
from ..matching import Match, match_class
from ..pattern import Pattern
from ..pattern.nodes import Predicate
from ..pattern.walk import variables
from ..rewrite import Rule, cycle_reason
from .search import Search


@dataclass(frozen=True)
class NearMiss:
    """A root at which the rule matched in part. `op` is that root; `at` is the op at which it stopped."""

    op: Op
    matched: int
    total: int
    reason: str
    at: Op

    def __str__(self) -> str:
        text = f"{place_of(self.op)}: matched {self.matched} of {self.total} pattern nodes; {self.reason}"
        return text if self.at is self.op else f"{text} ({place_of(self.at)})"


class Explainer:
    """Matches one pattern, given as data, at one op after another."""

    def __init__(self, patterns: tuple[Pattern, ...], where: Predicate | None = None, rule: Rule | None = None) -> None:
        self.forms = forms(patterns)
        self.where, self.rule = where, rule
        self.names = tuple(dict.fromkeys(v.name for v in variables(patterns) if v.name))
        self.matches = match_class(self.names, len(patterns))

    def match(self, root: Op) -> Match | None:
        """What the compiled matcher would find at `root`."""
        for form in self.forms:
            if form.roots[0].cls is type(root):
                search = Search(form, self.matches, self.where, tolerant=False)
                if search.run(root):
                    return search.match
        return None

    def near_miss(self, root: Op) -> NearMiss | None:
        """How near the pattern comes to matching at `root`; None where it matches."""
        match = self.match(root)
        if match is not None:
            return self._declined(match)
        best: NearMiss | None = None
        for form in self.forms:
            if form.roots[0].cls is type(root):
                search = Search(form, self.matches, self.where, tolerant=True)
                search.run(root)
                reached, failure = search.best
                miss = NearMiss(root, reached, search.total, failure.reason, failure.op)
                if best is None or (miss.matched - miss.total, miss.matched) > (
                    best.matched - best.total,
                    best.matched,
                ):
                    best = miss
        return best

    def _declined(self, match: Match) -> NearMiss | None:
        """A match that the driver leaves alone, because rewriting it would make a cycle."""
        if self.rule is None or match.root_count == 1:
            return None
        try:
            made = self.rule.rewrite(match)
        except IrlabError:
            return None
        reason = cycle_reason(match, made if isinstance(made, tuple) else (made,))
        return NearMiss(match.root, len(match.ops), len(match.ops), reason, match.root) if reason else None
