"""Which op is which, when passes replace one by another? Names for values and numbers for ops that outlive rewriting.

What replaces %12 is called %12, so that two texts differ where a pass changed something and not in how the rest is
numbered. A new op that takes the place of one of its own kind takes over its number too: it is a changed op, not a new
one. Replacements are told by rewrite events; those made by hand are seen where an op reads a new value in the place of
one that is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..ir import Graph, Op, Return, Value
from ..rewrite import Match
from ..text.printer import is_inline


@dataclass(frozen=True)
class Origin:
    """What made an op: a rule or pass, and the earlier ops, by number, that it was made from."""

    rule: str
    sources: tuple[int, ...]


class Identities:
    """Follows the ops of one graph from state to state. `names` and `uids` hold those of the latest."""

    def __init__(self) -> None:
        self.names: dict[Value, str] = {}
        self.uids: dict[Op | Value, int] = {}
        self.origins: dict[int, Origin] = {}
        self._operands: dict[Op, tuple[Value | None, ...]] = {}
        self._replaced: dict[Value, Value] = {}
        self._made: dict[Op, tuple[str, tuple[Op, ...]]] = {}
        self._number = 0

    def rewritten(self, rule: str, match: Match, values: Sequence[Value]) -> tuple[int, int]:
        """Note that `values` take the place of the roots of `match`; returns how many ops were matched and made."""
        matched = match.ops
        made = list(self._unknown(values))
        self._made.update(dict.fromkeys(made, (rule, matched)))
        old = [result for root in match.roots for result in root.results]
        self._replaced.update({new: before for before, new in zip(old, values) if new.op in self._made})
        return _count(matched), _count(made)

    def _unknown(self, values: Iterable[Value]) -> Iterator[Op]:
        """The ops behind `values` that neither a state nor a rewrite has shown before."""
        seen: set[Op] = set()
        stack = [value.op for value in values]
        while stack:
            op = stack.pop()
            if op is not None and op not in seen and op not in self._operands and op not in self._made:
                seen.add(op)
                yield op
                stack.extend([value.op for value in op.operands if value is not None])

    def update(self, graph: Graph, order: Sequence[Op]) -> None:
        """Name the values and number the ops of `graph` as it is now; `order` holds its ops, producers first."""
        shown = [op for op in order if not is_inline(op)]
        live = {*graph.inputs, *[result for op in shown for result in op.results]}
        gone = {value: name for value, name in self.names.items() if value not in live}
        self._infer_replacements(shown, gone)
        inherited = self._name([*graph.inputs, *[result for op in shown for result in op.results]], gone)
        self._number_ops(graph, shown, inherited)
        self._operands = {op: op.operands for op in order}
        self._replaced.clear()
        self._made.clear()

    def _infer_replacements(self, shown: Sequence[Op], gone: dict[Value, str]) -> None:
        for op in shown:
            before = self._operands.get(op)
            if before is None or before is op.operands:
                continue
            for old, new in zip(before, op.operands):
                if old in gone and new is not None and new not in self.names:
                    self._replaced.setdefault(new, old)

    def _name(self, values: Sequence[Value], gone: dict[Value, str]) -> dict[Value, Value]:
        """Give every value its name; returns whose name each new value took over."""
        names = {value: self.names[value] for value in values if value in self.names}
        taken = set(names.values())
        inherited: dict[Value, Value] = {}
        for value in values:
            if value in names:
                continue
            old = self._replaced.get(value)
            while old is not None and old not in gone:
                old = self._replaced.get(old)
            if old is not None and value.name is None and gone[old] not in taken:
                inherited[value] = old
                name = gone[old]
            else:
                name = self._fresh(value.name, taken)
            names[value] = name
            taken.add(name)
        self.names = names
        return inherited

    def _fresh(self, given: str | None, taken: set[str]) -> str:
        if given is not None and f"%{given}" not in taken:
            return f"%{given}"
        name = f"%{given}_{self._number}" if given is not None else f"%{self._number}"
        self._number += 1
        return name if name not in taken else self._fresh(given, taken)

    def _number_ops(self, graph: Graph, shown: Sequence[Op], inherited: dict[Value, Value]) -> None:
        before, self.uids = self.uids, {}
        last = max([*before.values(), *self.origins, -1])
        returned = next((uid for op, uid in before.items() if isinstance(op, Return)), None)
        for value in graph.inputs:
            last = self._keep(value, before.get(value), last)
        claimed = {before[op] for op in shown if op in before}
        for op in shown:
            uid = before.get(op)
            old = inherited.get(op.results[0]) if op.results else None
            if uid is None and isinstance(op, Return):
                uid = returned
            elif uid is None and old is not None and type(old.op) is type(op) and before.get(old.op) not in claimed:
                uid = before.get(old.op)
            last = self._keep(op, uid, last)
            claimed.add(self.uids[op])
            if op not in before:
                self._note_origin(op, old, before)

    def _keep(self, what: Op | Value, uid: int | None, last: int) -> int:
        """Number an op or input as before, or with the next number; returns the last number in use."""
        self.uids[what] = last + 1 if uid is None else uid
        return max(last, self.uids[what])

    def _note_origin(self, op: Op, old: Value | None, before: dict[Op | Value, int]) -> None:
        if op in self._made:
            rule = self._made[op][0]
            sources = sorted({before[source] for source in self._sources(op) if source in before})
        elif old is not None and old.op in before:
            rule, sources = (op.loc.made_by if op.loc else ""), [before[old.op]]
        else:
            return
        self.origins[self.uids[op]] = Origin(rule, tuple(sources))

    def _sources(self, op: Op) -> set[Op]:
        """The ops of the state before that `op` was made from, through those that came and went since."""
        found: set[Op] = set()
        stack = [op]
        while stack:
            for source in self._made[stack.pop()][1]:
                if source not in found:
                    found.add(source)
                    if source in self._made:
                        stack.append(source)
        return found


def _count(ops: Iterable[Op]) -> int:
    """How many ops have a line of their own in IR text."""
    return sum(not is_inline(op) for op in ops)
