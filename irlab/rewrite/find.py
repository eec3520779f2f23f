"""Matching without rewriting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..ir import Graph
from ..matching import Match, Matcher, compile_pattern
from ..pattern import Pattern
from .rule import Rule, patterns_of


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
