"""Would a replacement of several values depend on itself?"""

from __future__ import annotations

from collections.abc import Container, Iterable

from ..ir import Op, Value, place_of
from ..matching import Match


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
            return f"the replacement reads a value that depends on the matched {place_of(root)}: a cycle"
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
