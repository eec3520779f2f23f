"""What is folded into a weight where an op reads it, and how does the graph come to read the changed weights?"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Literal, TypeAlias

from irlab.errors import InputError
from irlab.ir import Graph, Op, Value, Weight, path_of
from irlab.layers import layer_name, layer_of
from irlab.ops import prim
from irlab.weight_uses import WeightUses, operand_name, weight_uses
from irlab.weights import Affine, Project, Recipe, Rotate, Scale, WeightSymbol

Kind: TypeAlias = Literal["hadamard", "orthogonal"]


@dataclass(frozen=True)
class Turn:
    """Each block of indices of an axis is multiplied by a random orthogonal matrix."""

    axis: int
    block: int
    kind: Kind
    seed: int

    def applied(self, recipe: Recipe) -> Recipe:
        return Rotate(recipe, self.axis, self.block, self.kind, self.seed)


@dataclass(frozen=True)
class Projection:
    """An axis is multiplied by the columns of `basis`."""

    axis: int
    basis: Recipe

    def applied(self, recipe: Recipe) -> Recipe:
        return Project(recipe, self.basis, self.axis)


@dataclass(frozen=True)
class Fold:
    """What becomes of a weight: its columns take in the gain of the norm before them (the name of a weight), then it is
    turned. `spent`: it is such a gain, and only ones are left."""

    gain: str = ""
    turns: tuple[Turn | Projection, ...] = ()
    spent: bool = False

    def applied(self, recipe: Recipe, weights: Mapping[str, WeightSymbol]) -> Recipe:
        if self.spent:
            return Affine(recipe, 0.0, 1.0)
        if self.gain:
            recipe = Scale(recipe, weights[self.gain].recipe)
        for turn in self.turns:
            recipe = turn.applied(recipe)
        return recipe


class Folds:
    """What is folded in, by the op and the operand that reads the weight."""

    def __init__(self) -> None:
        self._found: dict[tuple[Op, str], Fold] = {}

    def of(self, op: Op, operand: str) -> Fold:
        return self._found.get((op, operand), Fold())

    def gain(self, op: Op, operand: str, norm: str) -> None:
        self._found[op, operand] = replace(self.of(op, operand), gain=norm)

    def spend(self, op: Op, operand: str) -> None:
        self._found[op, operand] = Fold(spent=True)

    def turn(self, op: Op, operand: str, turn: Turn | Projection) -> None:
        fold = self.of(op, operand)
        self._found[op, operand] = replace(fold, turns=(*fold.turns, turn))

    def apply(self, graph: Graph, *, untie: bool) -> list[str]:
        """Let `graph` read the changed weights; returns the names of those that became two. Raises InputError where
        the uses of a tied weight need it in different forms, unless they may be untied."""
        weights = graph.weights()
        untied: list[str] = []
        for name, uses in weight_uses(graph).items():
            forms: dict[Fold, list[tuple[Op, str]]] = {}
            for op, operand in uses.users:
                forms.setdefault(self.of(op, operand), []).append((op, operand))
            if len(forms) > 1 and not untie:
                raise InputError(
                    f"rotate: the tied weight '{name}' would be needed in {len(forms)} forms, because the gain of the "
                    "last norm goes into the head alone",
                    "tied=untie stores them apart",
                )
            for number, (fold, users) in enumerate(forms.items()):
                new = name if number == 0 else _free_name({*weights, *untied}, name, users[0][0])
                if number:
                    untied.append(new)
                if number or fold != Fold():
                    _read(uses, users, WeightSymbol(new, fold.applied(uses.symbol.recipe, weights)))
        return untied


def _free_name(taken: Container[str], name: str, op: Op) -> str:
    """What a use of its own is called: as its layer would call it, or its module."""
    own, home = layer_of(op), layer_name(name)
    wished = f"{name}.untied"
    if own is not None and home:
        wished = f"{own[0]}.{own[1]}{name.removeprefix(home)}"
    elif path_of(op):
        wished = f"{path_of(op)}.weight"
    others = (f"{name}.untied{number}" for number in count(1))
    return next(each for each in chain((wished,), others) if each not in taken)


def _read(uses: WeightUses, users: list[tuple[Op, str]], symbol: WeightSymbol) -> None:
    """Let these users read `symbol` in place of the weight that they read now."""
    new: dict[Graph, Value] = {}
    """A region reads a weight of its own."""
    for op, operand in users:
        assert op.graph is not None
        for slot, value in enumerate(op.operands):
            read = None if value is None else value.op
            if isinstance(read, Weight) and read.symbol.name == uses.symbol.name and operand_name(op, slot) == operand:
                if op.graph not in new:
                    new[op.graph] = prim.weight(symbol)
                op.graph.set_operand(op, slot, new[op.graph])
