"""Which ops does a place named on the command line mean? `%12` as IR text prints it, or a part of a location."""

from __future__ import annotations

from difflib import get_close_matches

from .errors import UsageError
from .ir import Graph, Op, path_of
from .text import printed_values
from .weight_uses import graphs


def find_ops(graph: Graph, place: str) -> list[Op]:
    """The ops of `graph` and its regions at `place`: the one whose result is printed as `%NAME`, or those whose module
    path contains the text; all for no text. Raises UsageError with a suggestion where there is none."""
    if place.startswith("%"):
        return _named(graph, place)
    ops = [op for each in graphs(graph) for op in each.ops()]
    found = [op for op in ops if place in path_of(op)]
    if not found:
        paths = sorted({path_of(op) for op in ops} - {""})
        near = get_close_matches(place, paths, 1, 0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"locations are {', '.join(paths[:3])} ..." if paths else ""
        raise UsageError(f"no op has a location with '{place}' in it", hint or "the ops of this module have none")
    return found


def _named(graph: Graph, name: str) -> list[Op]:
    found: list[Op] = []
    known: dict[str, None] = {}
    for each in graphs(graph):
        for text, value in printed_values(each).items():
            if value.op is not None:
                known[text] = None
                if text == name:
                    found.append(value.op)
            elif text == name:
                raise UsageError(f"{name} is an input of the graph, not an op", "name the result of an op")
    if not found:
        near = get_close_matches(name, known, 1, 0.5)
        span = f"%NAME as the IR prints it at this point, such as {next(iter(known), '%0')}"
        raise UsageError(f"no op's result is called {name}", f"did you mean '{near[0]}'?" if near else span)
    return found
