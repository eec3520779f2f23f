"""Rules, and the driver that applies them greedily until none matches.

    class FuseRMSNorm(Rule):
        def pattern(self, x, w, eps): ...          # what to look for (see pattern.py)
        def where(self, m: Match) -> bool | str: ...   # a last condition; a string is the reason for refusing
        def rewrite(self, m: Match) -> Value: ...      # the expression that takes its place

    rewrites = rewrite(graph, [FuseRMSNorm()])
    rewrites.hits["fuse-rms-norm"]

Only ops of the classes that patterns begin with are visited. What a rewrite attaches, and what reads its result, is
visited again; sweeps repeat until one changes nothing. Where several rules match one op, the first in the list wins.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from time import perf_counter, thread_time
from typing import Any, ClassVar, Final, TypeAlias

from .collector import paused
from .errors import IRError, IrlabError
from .forms import Outline, outline
from .ir import UNKNOWN_LOC, Graph, Loc, Op, Value
from .matching import Match, Matcher, compile_pattern
from .pattern import Pattern, PatternError, Variable, variables

__all__ = ["Match", "Rewrites", "Rule", "find", "rewrite"]

_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Rule:
    """A rewrite: a pattern, an optional condition, a replacement. `name` defaults to the class name in kebab case.

    `pattern` takes the pattern's variables by name and returns what it looks for; a tuple has several roots.
    `rewrite` gives the value that takes the place of the matched one: a new expression, or a value that is there
    already. For an op with several results, or several roots, it gives a tuple, one value for each result.
    """

    name: ClassVar[str] = "rule"

    def __init_subclass__(cls, name: str = "", **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if name or "name" not in vars(cls):
            cls.name = name or _WORD_BOUNDARY.sub("-", cls.__name__).lower()

    def pattern(self, *variables: Any, **keywords: Any) -> Pattern | tuple[Pattern, ...]:
        """What the rule looks for, written with `p` over its own parameters."""
        raise PatternError(f"rule {self.name} has no pattern")

    def where(self, m: Match) -> bool | str:
        """A last condition on a complete match; False or a reason lets the matcher look for another one."""
        return True

    def rewrite(self, m: Match) -> Value | tuple[Value, ...]:
        """The replacement."""
        raise IRError(f"rule {self.name} has no replacement")

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """The roots of the pattern."""
        return patterns_of(self.pattern, f"rule {self.name}")

    @cached_property
    def matchers(self) -> list[Matcher]:
        """The compiled pattern; their `source` is Python."""
        where = self.where if type(self).where is not Rule.where else None
        return compile_pattern(self.patterns, self.name, where)


def patterns_of(function: Callable[..., object], owner: str) -> tuple[Pattern, ...]:
    """The pattern that a function of pattern variables describes."""
    parameters = inspect.signature(function).parameters
    made = function(*[Variable(name) for name in parameters])
    roots = made if isinstance(made, tuple) else (made,)
    if not all(isinstance(root, Pattern) for root in roots):
        raise PatternError(f"{owner}: the pattern is {made!r}", "return what p builds")
    used = {variable.name for variable in variables(roots)}
    unused = [name for name in parameters if name not in used]
    if unused:
        raise PatternError(f"{owner}: the pattern never uses {', '.join(unused)}")
    return roots


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


def cycle_reason(m: Match, new: tuple[Value, ...]) -> str:
    """Why replacing the roots of `m` by `new` (still detached) would make a cycle; "" if it would not.

    It would if the new expression reads a value that is computed from a root.
    """
    leaves = _leaves(new)
    matched = set(m.ops)
    for root in m.roots:
        # What a root is computed from cannot be computed from it; this settles nearly every case near by.
        suspects = [value for value in leaves if value not in _leaves(root.results, matched)]
        if suspects and _depends(suspects, root):
            where = f" at {root.loc.path}" if root.loc and root.loc.path else ""
            return f"the replacement reads a value that depends on the matched {root.opname}{where}: a cycle"
    return ""


def _leaves(values: Iterable[Value], through: Container[Op] | None = None) -> dict[Value, None]:
    """The values that `values` are computed from, seen through the ops in `through`, or through detached ops."""
    leaves: dict[Value, None] = {}
    seen: set[Op] = set()
    stack = list(values)
    while stack:
        value = stack.pop()
        op = value.op
        if op is not None and (op.graph is None if through is None else op in through):
            if op not in seen:
                seen.add(op)
                stack.extend([v for v in op.operands if v is not None])
        else:
            leaves[value] = None
    return leaves


def _depends(values: list[Value], root: Op) -> bool:
    """Whether one of `values` is computed from `root`. Searches up from the values and down from the root by turns,
    so that the smaller side bounds the work."""
    up = {value.op for value in values if value.op is not None}
    down = {root}
    above, below = list(up), [root]
    while above and below:
        if not up.isdisjoint(down):
            return True
        if len(above) <= len(below):
            read = [v.op for op in above for v in op.operands if v is not None and v.op is not None]
            above = list(dict.fromkeys([op for op in read if op not in up]))
            up.update(above)
        else:
            below = list({user: None for op in below for r in op.results for user in r.uses if user not in down})
            down.update(below)
    return not up.isdisjoint(down)


def find(graph: Graph, pattern: Rule | type[Rule] | Pattern | Callable[..., Any]) -> Iterator[Match]:
    """Every op of `graph` and its regions at which `pattern` matches: a rule, a pattern, or a function of pattern
    variables. Nothing is rewritten; the graph may be changed between two matches."""
    if isinstance(pattern, type) and issubclass(pattern, Rule):
        pattern = pattern()
    if isinstance(pattern, Rule):
        matchers = pattern.matchers
    elif isinstance(pattern, Pattern):
        matchers = compile_pattern((pattern,), "find")
    else:
        matchers = compile_pattern(patterns_of(pattern, "find"), "find")
    yield from _find(graph, matchers)


def _find(graph: Graph, matchers: list[Matcher]) -> Iterator[Match]:
    classes = dict.fromkeys(matcher.cls for matcher in matchers)
    roots = [op for cls in classes for op in graph.find(cls)]
    roots.sort(key=lambda op: op.seq)
    for op in roots:
        for matcher in matchers:
            if op.graph is graph and matcher.cls is type(op) and (m := matcher.match(op)) is not None:
                yield m
                break
    for holder in list(graph.region_ops()):
        for region in holder.regions:
            yield from _find(region, matchers)
