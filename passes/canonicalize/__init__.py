"""The canonicalize pass: one spelling for what can be spelled in several ways, so that other rules see fewer forms.

The rules stand in groups, a file each, which says why the group is there. Every rule keeps the numbers exactly, and
makes the graph smaller or moves it toward the one spelling, so that they settle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from irlab import Rule
from irlab.passes.canonicalize.algebra import ALGEBRA
from irlab.passes.canonicalize.nothing import NOTHING
from irlab.passes.canonicalize.order import COMMUTATIVE, ConstantRight
from irlab.passes.canonicalize.pairs import PAIRS
from irlab.passes.canonicalize.types import TYPES
from irlab.passmgr import RulePass

RULES: Final[tuple[Rule, ...]] = (
    *(rule() for rule in (*NOTHING, *PAIRS, *ALGEBRA, *TYPES)),
    *(ConstantRight(cls) for cls in COMMUTATIVE),
)
"""One instance each, so that patterns are compiled once."""


@dataclass(frozen=True)
class Canonicalize(RulePass, name="canonicalize"):
    """Brings ops into one form: no ops that do nothing, no two reshapes in a row, constants on the right.

        %1 = prim.reshape(%x) {shape=[4, 6]}
        %2 = prim.reshape(%1) {shape=[24]}        ->    %2 = prim.reshape(%x) {shape=[24]}
        %3 = prim.mul(1.0, %2)

    All of its rules are exact.
    """

    def rules(self) -> Sequence[Rule]:
        return RULES
