"""The quick way of reading an op: a line made of pieces that were read before.

The pieces are a callee with its attributes and types, operands, a location. They come to be known only by being read in
full (graphs.py), so the quick way accepts nothing that the slow way would not, and reads nothing differently.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import IrlabError
from ..ir import Loc
from .environment import Env

_PLAIN_RESULT: Final = re.compile(r"%(?:\d++|[A-Za-z_][A-Za-z0-9_.\-]*+)", re.ASCII)
_PLAIN_LOC: Final = re.compile(r'"([^"\\\n\x00-\x1f]*+)"\)')
_DIGITS: Final = "0123456789"

# What a constructor may raise on operands and attributes that fit no op; anything else is a bug and escapes.
MISFITS: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


def read_known_line(env: Env, line: str) -> bool:
    """Read a whole line that is made of known pieces; False, with nothing done, if it is not."""
    graph, around = env.graph, env.around
    head, _, rest = line.partition(" = ")
    callee, _, rest = rest.partition("(")
    arguments, _, tail = rest.partition(" : ")
    arguments, braces, attributes = arguments.partition(") {")
    if braces:
        attributes = attributes.rstrip()
    else:
        arguments = arguments.rstrip()
        if arguments[-1:] != ")":
            return False
        arguments = arguments[:-1]
    types, _, place = tail.partition(" loc(")
    known = around.calls.get((callee, attributes, types.rstrip()))
    if known is None:
        return False
    called, fields, stated = known
    try:
        given = [env[token] for token in arguments.split(", ")] if arguments else []
    except KeyError:
        return False
    if place:
        place = place.rstrip()
        loc = around.locs.get(place)
        if loc is None:
            plain = _PLAIN_LOC.fullmatch(place)
            if plain is None:
                return False
            loc = around.locs[place] = Loc.at(plain[1])
    else:
        loc = None
    tokens = head.strip().split(", ")
    for token in tokens:
        if token in env or _PLAIN_RESULT.fullmatch(token) is None:
            return False
    try:
        if called.least <= len(given) <= called.most and None not in given:
            op = called.cls(*given, **fields)
        elif called.wrong_operands(given):
            return False
        else:
            op = called.cls(**called.arrange(given), **fields)
    except (IrlabError, *MISFITS):
        return False
    results = op.results
    if len(results) != len(tokens) or [result.type for result in results] != stated:
        return False
    op.loc = loc
    graph.add(op)
    for token, value in zip(tokens, results):
        env[token] = value
        if token[1] not in _DIGITS:
            value.name = token[1:]
    return True
