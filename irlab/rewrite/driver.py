"""The greedy driver: which ops are visited, in which order, and how a replacement takes its place.

Only ops of the classes that patterns begin with are visited. What a rewrite attaches, and what reads its result, is
visited again; sweeps repeat until one changes nothing. Where several rules match one op, the first in the list wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from time import perf_counter, thread_time
from typing import Any, Final, TypeAlias

from ..collector import paused
from ..errors import IRError, IrlabError
from ..forms import Outline, outline
from ..ir import UNKNOWN_LOC, Graph, Loc, Op, Value
from ..matching import Match, Matcher
from .cycles import cycle_reason
from .rule import Rule

Observer: TypeAlias = Callable[[Rule, Match, "tuple[Value, ...]"], None]
"""Told of a rewrite: the rule, the match with its ops still in place, and the new values."""


@dataclass
class Rewrites:
    """What the driver did: rewrites per rule and, if it was asked to time, what each rule took."""

    hits: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Wall and CPU seconds per rule."""
    declined: dict[str, int] = field(default_factory=dict)
    """Matches left alone because their replacement would have made a cycle, per rule."""

    @property
    def total(self) -> int:
        return sum(self.hits.values())

    def __bool__(self) -> bool:
        return self.total > 0


ALLOWANCE: Final = 64
"""Rewrites per op of the graph after which a set of rules counts as never settling."""

FEW: Final = 2
"""So many rules are tried without a closer look at the classes around an op."""


def rewrite(
    graph: Graph,
    rules: Iterable[Rule | type[Rule]],
    *,
    on_event: Observer | None = None,
    check: Observer | None = None,
    limit: int | None = None,
    timing: bool = False,
    pause_gc: bool = True,
) -> Rewrites:
    """Apply `rules` to `graph` and its regions until none matches.

    on_event is told of every rewrite just before the matched ops go; check before the replacement is attached, and
    raises if it is wrong. `limit` bounds the number of rewrites (10,000 and 64 per op of the graph, unless given).
    `pause_gc` stops Python's cyclic collector meanwhile: a growing graph makes it walk everything over and over.

    Raises IRError, naming the rule, if a replacement has another type than what it replaces, or rules never settle.
    """
    chosen = [rule() if isinstance(rule, type) else rule for rule in rules]
    result = Rewrites({rule.name: 0 for rule in chosen})
    driver = _Driver(chosen, on_event, check, limit, timing)
    try:
        with paused(pause_gc):
            driver.settle(graph)
    finally:
        driver.report(result)
    return result


class _Entry:
    """One matcher of one rule, with what the driver needs at hand."""

    __slots__ = (
        "cpu_seconds",
        "declined",
        "expected",
        "hits",
        "locs",
        "match",
        "matcher",
        "rewrite",
        "rule",
        "seconds",
        "single",
    )

    def __init__(self, rule: Rule, matcher: Matcher, timing: bool) -> None:
        self.rule, self.matcher = rule, matcher
        self.match: Callable[[Op], Match | None] = matcher.match
        self.rewrite: Callable[[Match], Value | tuple[Value, ...]] = rule.rewrite
        self.hits, self.declined, self.seconds, self.cpu_seconds = 0, 0, 0.0, 0.0
        self.single = len(rule.patterns) == 1
        self.locs: dict[Loc | None, Loc] = {}
        if timing:
            self.match, self.rewrite = self.timed(self.match), self.timed(self.rewrite)

    def timed(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def measure(argument: Any) -> Any:
            wall, cpu = perf_counter(), thread_time()
            try:
                return function(argument)
            finally:
                self.seconds += perf_counter() - wall
                self.cpu_seconds += thread_time() - cpu

        return measure

    def loc(self, of: Loc | None) -> Loc:
        found = self.locs[of] = (of or UNKNOWN_LOC).by(self.rule.name)
        return found


class _Driver:
    def __init__(
        self, rules: list[Rule], on_event: Observer | None, check: Observer | None, limit: int | None, timing: bool
    ) -> None:
        self.entries = [_Entry(rule, matcher, timing) for rule in rules for matcher in rule.matchers]
        self.by_class: dict[type[Op], list[_Entry]] = {}
        for entry in self.entries:
            self.by_class.setdefault(entry.matcher.cls, []).append(entry)
        self.chosen: dict[Outline, list[_Entry]] = {}
        self.on_event, self.check, self.limit = on_event, check, limit

    def report(self, result: Rewrites) -> None:
        for entry in self.entries:
            name = entry.rule.name
            result.hits[name] += entry.hits
            if entry.seconds:
                wall, cpu = result.seconds.get(name, (0.0, 0.0))
                result.seconds[name] = (wall + entry.seconds, cpu + entry.cpu_seconds)
            if entry.declined:
                result.declined[name] = result.declined.get(name, 0) + entry.declined

    def settle(self, graph: Graph) -> None:
        """Sweep until nothing changes, then the regions: they are isolated, so neither affects the other."""
        allowance = ALLOWANCE * len(graph) + 10_000 if self.limit is None else self.limit
        while rewritten := self.sweep(graph, allowance):
            allowance -= rewritten
        for holder in list(graph.region_ops()):
            for region in holder.regions:
                self.settle(region)

    def candidates(self, op: Op, entries: list[_Entry]) -> list[_Entry]:
        """Those of `entries` that the classes around `op` admit, remembered per combination of classes: so the time
        for a rule that does not match here hardly depends on how many such rules there are."""
        key = (type(op), *[type(None if v is None else v.op) for v in op.operands])
        found = self.chosen.get(key)
        if found is None:
            found = self.chosen[key] = [entry for entry in entries if entry.matcher.possible(key)]
        for levels in (2, 3):
            if len(found) <= FEW:
                break
            closer = outline(op, levels)
            nearby = self.chosen.get(closer)
            if nearby is None:
                nearby = self.chosen[closer] = [entry for entry in found if entry.matcher.possible(closer)]
            found = nearby
        return found

    def sweep(self, graph: Graph, allowance: int) -> int:
        by_class = self.by_class
        # Taken from the end: earlier ops first, and what a rewrite brings before anything else.
        work = list(chain.from_iterable(graph.index.get(cls, ()) for cls in by_class))
        work.reverse()
        rewritten = 0
        while work:
            op = work.pop()
            if op.graph is None:
                continue
            entries = by_class[type(op)]
            if len(entries) > 1:
                entries = self.candidates(op, entries)
            for entry in entries:
                m = entry.match(op)
                if m is None:
                    continue
                if rewritten == allowance:
                    raise self.never_settles(op)
                try:
                    made = entry.rewrite(m)
                except IrlabError as error:
                    error.message = f"rule {entry.rule.name}: {error.message}"
                    raise
                if entry.single and type(made) is Value and len(op.results) == 1:
                    self.replace_one(graph, entry, m, made, work)
                elif not self.replace_several(graph, entry, m, made, work):
                    continue
                entry.hits += 1
                rewritten += 1
                break
        return rewritten

    def replace_one(self, graph: Graph, entry: _Entry, m: Match, new: Value, work: list[Op]) -> None:
        """Put `new` in the place of the only result of the matched op. As `replace_several`, written out because nearly
        all rewrites are of this kind."""
        root = m.root
        (old,) = root.results
        if new.type is not old.type or new is old:
            raise self.misfit(entry, m, old, new)
        if self.check is not None:
            self.check(entry.rule, m, (new,))
        by_class, users = self.by_class, old.uses
        made = new.op
        if made is not None and made.graph is None:
            readers = len(users)
            for op in graph.attach(made, root.seq, entry.locs.get(root.loc) or entry.loc(root.loc)):
                if type(op) in by_class:
                    work.append(op)
            if len(users) != readers:
                raise self.reads_itself(entry, m)
        if self.on_event is not None:
            self.on_event(entry.rule, m, (new,))
        for user in users:
            if type(user) in by_class:
                work.append(user)
        graph.replace_uses(old, new)
        graph.erase(root)

    def replace_several(
        self, graph: Graph, entry: _Entry, m: Match, made: Value | tuple[Value, ...], work: list[Op]
    ) -> bool:
        """Put what a rule made in the place of all results of all matched roots; False where that makes a cycle."""
        new = made if isinstance(made, tuple) else (made,)
        root, roots, by_class = m.root, m.roots, self.by_class
        old = tuple([result for each in roots for result in each.results])
        if len(new) != len(old):
            raise IRError(f"rule {entry.rule.name} replaces {len(old)} values by {len(new)}", op=root)
        for before, after in zip(old, new):
            if type(after) is not Value or after.type is not before.type or after in old:
                raise self.misfit(entry, m, before, after)
        if len(roots) > 1 and cycle_reason(m, new):
            entry.declined += 1
            return False
        if self.check is not None:
            self.check(entry.rule, m, new)
        readers = [len(value.uses) for value in old]
        for value in new:
            if value.op is not None and value.op.graph is None:
                attached = graph.attach(value.op, root.seq, entry.locs.get(root.loc) or entry.loc(root.loc))
                work.extend([op for op in attached if type(op) in by_class])
        if [len(value.uses) for value in old] != readers:
            raise self.reads_itself(entry, m)
        if self.on_event is not None:
            self.on_event(entry.rule, m, new)
        for before, after in zip(old, new):
            work.extend([user for user in before.uses if type(user) in by_class])
            graph.replace_uses(before, after)
        for each in roots:
            if each.graph is not None:
                graph.erase(each)
        return True

    def reads_itself(self, entry: _Entry, m: Match) -> IRError:
        return IRError(f"rule {entry.rule.name}: the replacement reads the value that it replaces", op=m.root)

    def misfit(self, entry: _Entry, m: Match, before: Value, after: object) -> IRError:
        name = entry.rule.name
        if type(after) is not Value:
            return IRError(f"rule {name}: rewrite gave {after!r}", "return a value", m.root)
        if after.type is before.type:
            return IRError(f"rule {name} replaces a value by itself", op=m.root)
        return IRError(f"rule {name} replaces a value of type {before.type} by one of type {after.type}", op=m.root)

    def never_settles(self, op: Op) -> IRError:
        busiest = max(self.entries, key=lambda entry: entry.hits).rule
        return IRError(
            f"rule {busiest.name} never settles: it keeps matching what it or other rules produce",
            "its replacement must not match the pattern again",
            op,
        )
