"""What can be asked of a pattern as a whole: its nodes, its variables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .nodes import Maybe, Named, Number, OpPattern, Pattern, Rest, Variable


def walk(roots: Iterable[Pattern]) -> list[Pattern]:
    """Every node below `roots` and these themselves, each once, parents first."""
    found: dict[Pattern, None] = {}
    stack = [*roots][::-1]
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = None
            stack.extend(reversed(node.children))
    return list(found)


def variables(roots: Iterable[Pattern]) -> list[Variable]:
    """Every occurrence of a variable in a pattern, in order; one entry for each place where it stands."""
    roots = list(roots)
    found = [root for root in roots if isinstance(root, Variable)]
    for node in walk(roots):
        found.extend([child for child in node.children if isinstance(child, Variable)])
        match node:
            case Rest() | Named():
                found.append(node.variable)
            case Number(variable=Variable() as variable) | Maybe(flag=Variable() as variable):
                found.append(variable)
            case OpPattern():
                found.extend([a.wanted for a in node.attributes if isinstance(a.wanted, Variable)])
    return found


def variable_counts(roots: Iterable[Pattern]) -> Counter[str]:
    """In how many places each name stands. An anonymous variable is another one wherever it stands."""
    counts = Counter([v.name for v in variables(roots)])
    counts[""] = 1
    return counts
