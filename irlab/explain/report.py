"""Where a rule nearly matches in a graph, for people."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import UsageError
from ..ir import Graph, Op, path_of
from ..places import find_ops
from ..rewrite import Rule
from .explainer import Explainer, NearMiss


def why_not(graph: Graph, rule: Rule | type[Rule], at: str = "") -> list[NearMiss]:
    """Where `rule` nearly matches in `graph` and its regions, furthest first; `at` keeps one op (`%12`, as text prints
    it) or those whose location contains it.

    An op of the root's class where nothing else matched is left out, unless there is nothing better to show. Raises
    UsageError where `at` names nothing, or one op that the pattern cannot begin with.
    """
    rule = rule() if isinstance(rule, type) else rule
    explainer = Explainer(rule.patterns, rule.where, rule)
    found = [miss for root in _chosen(graph, explainer, rule, at) if (miss := explainer.near_miss(root))]
    telling = [miss for miss in found if miss.matched > 1]
    return sorted(telling or found, key=lambda miss: miss.matched - miss.total)


def format_near_misses(rule: Rule | type[Rule], misses: list[NearMiss], limit: int = 12) -> str:
    """Text for people; near misses with one reason are told once."""
    name = rule.name
    if not misses:
        return f"{name}: no op that its pattern could begin with is left unmatched"
    alike: dict[tuple[str, int, str, str], list[NearMiss]] = {}
    for miss in misses:
        alike.setdefault((miss.op.opname, miss.matched, miss.reason, miss.at.opname), []).append(miss)
    if all(miss.matched <= 1 < miss.total for miss in misses):
        lines = [f"{name}: no near miss; nothing but the op that its pattern begins with matches"]
    else:
        lines = [f"{name}: {len(misses)} near miss{'es' if len(misses) > 1 else ''}"]
    for group in list(alike.values())[:limit]:
        lines.append(f"  {group[0]}")
        if len(group) > 1:
            places = [place for miss in group[1:4] if (place := path_of(miss.op))]
            lines.append(f"      and {len(group) - 1} more like this" + (f": {', '.join(places)}" if places else ""))
    if len(alike) > limit:
        lines.append(f"  and {len(alike) - limit} other kinds")
    return "\n".join(lines)


def _roots(graph: Graph, explainer: Explainer) -> Iterator[Op]:
    for cls in dict.fromkeys(form.roots[0].cls for form in explainer.forms):
        yield from graph.find(cls)
    for holder in list(graph.region_ops()):
        for region in holder.regions:
            yield from _roots(region, explainer)


def _chosen(graph: Graph, explainer: Explainer, rule: Rule, at: str) -> list[Op]:
    """The roots at `at`."""
    roots = list(_roots(graph, explainer))
    if not at:
        return roots
    places = set(find_ops(graph, at))
    chosen = [root for root in roots if root in places]
    if not chosen and at.startswith("%"):
        (op,) = places
        begins = " or ".join(dict.fromkeys(form.roots[0].cls.opname for form in explainer.forms))
        raise UsageError(
            f"{at} is the result of {op.opname}, and the pattern of {rule.name} begins with {begins}",
            f"name a {begins} that is computed from {at}",
        )
    return chosen
