"""The tie-layers pass: layers of a group read the same matrices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from irlab.errors import InputError, UsageError
from irlab.ir import Graph, Module
from irlab.passes.quantize.selection import (
    before_encoding,
    note_experts,
    require_matches,
    require_plain,
    select_matrices,
)
from irlab.passmgr import Context, Pass, note
from irlab.weight_uses import replace_weights
from irlab.weights import Mean, WeightSymbol

NEEDS_REPAIR = (
    "tie-layers: storage only, and it needs repair training (heal): every layer is computed as before, no faster "
    "(GGUF stores the matrices of each layer)"
)

_PLACE = re.compile(r"^(.*?)\.(\d+)\.(.+)$")
"""A weight of a numbered layer: the stack, the number, and the name inside the layer."""


@dataclass(frozen=True)
class TieLayers(
    Pass,
    name="tie-layers",
    exactness="lossy",
    before={**before_encoding(), "drop-layers": "its groups name layers, and which are left is seen only then"},
):
    """Lets the layers of a group read the same matrices. Storage only; needs repair training.

        @layers.4.up = ..., @layers.5.up = ...   ->   @layers.4.up = mean(...), read in both layers

    As in ALBERT (Lan et al. 2019, arXiv 1909.11942) and recursive transformers (Bae et al. 2024, arXiv 2410.20672). A
    tied weight is one symbol with several uses: stored once in .irlab and ONNX, trained as one by heal. Norms and
    biases stay apart. Neighbouring layers in the middle of a model are alike most.

    `groups`: ranges of layers, each to share its matrices: groups=4-5,6-8. `start`: what they share at first: the mean,
    or what the first layer of the group has. `exclude`: names of weights to leave alone (`*` and `?` match).
    """

    groups: tuple[str, ...]
    start: Literal["mean", "first"] = "mean"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.ranges  # noqa: B018  # malformed groups are refused where they are written

    @property
    def ranges(self) -> list[range]:
        """The layers of each group. Raises UsageError for what is no range, and for a layer in two groups."""
        found: list[range] = []
        for text in self.groups:
            match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
            if match is None or int(match[1]) >= int(match[2]):
                raise UsageError(f"tie-layers: '{text}' is no range of layers", "write groups=4-5,6-8")
            group = range(int(match[1]), int(match[2]) + 1)
            if any(set(group) & set(other) for other in found):
                raise UsageError(f"tie-layers: layers of {text} are in two groups")
            found.append(group)
        if not found:
            raise UsageError("tie-layers: no group is given", "write groups=4-5,6-8")
        return found

    def run(self, module: Module, ctx: Context) -> None:
        require_matches(self.exclude, module, self.name)
        require_plain(module.graph, self.exclude, self.name)
        places = self._places(module.graph)
        tied: dict[str, WeightSymbol] = {}
        for group in self.ranges:
            missing = [n for n in group if not any(n in symbols for symbols in places.values())]
            if missing:
                layers = sorted({n for symbols in places.values() for n in symbols})
                known = f"there are {layers[0]} to {layers[-1]}" if layers else "run fuse before it"
                raise InputError(f"tie-layers: no layer {missing[0]} has matrices", known)
            for (stack, rest), symbols in places.items():
                members = [symbols[n] for n in group if n in symbols]
                if len(members) > 1:
                    tied |= self._tied(members, f"{stack}.*.{rest}")
        replace_weights(module.graph, tied)
        note(module, NEEDS_REPAIR)
        note_experts(module, self.name)
        ctx.note_rewrites({"tie": len(tied)})

    def _tied(self, members: list[WeightSymbol], where: str) -> dict[str, WeightSymbol]:
        first = members[0]
        for other in members[1:]:
            if other.type != first.type:
                raise InputError(
                    f"tie-layers: {where} is {first.type} and {other.type}: only weights of one type are shared",
                    f"leave the layer out, or exclude={where}",
                )
        recipe = first.recipe if self.start == "first" else Mean(tuple(symbol.recipe for symbol in members))
        return {symbol.name: WeightSymbol(first.name, recipe) for symbol in members}

    def _places(self, graph: Graph) -> dict[tuple[str, str], dict[int, WeightSymbol]]:
        """The matrices by stack and name inside a layer, then by number of the layer."""
        found: dict[tuple[str, str], dict[int, WeightSymbol]] = {}
        for name, symbol in select_matrices(graph, self.exclude).items():
            match = _PLACE.match(name)
            if match:
                found.setdefault((match[1], match[3]), {})[int(match[2])] = symbol
        return found
