"""How do checkpoints hold the experts of a mixture? As a tensor for each matrix, which transformers stacks.

Its models have the tensors `experts.gate_up_proj` [experts, 2 * ffn, hidden], gate first, and `experts.down_proj`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from ..weights import Concat, Recipe, Reshape, Slice, WeightSymbol, static_shape

GATE_UP: Final = "experts.gate_up_proj"
_DOWN: Final = "experts.down_proj"

_MATRICES: Final[tuple[dict[str, tuple[str, ...]], ...]] = (
    {GATE_UP: ("gate_proj", "up_proj"), _DOWN: ("down_proj",)},
    {GATE_UP: ("w1", "w3"), _DOWN: ("w2",)},
)
"""How checkpoints call an expert's matrices of what transformers keeps in one tensor: Qwen, OLMoE, DeepSeek ...; then
Mixtral, MiniMax."""

Find: TypeAlias = Callable[[str, tuple[int, ...]], "Recipe | None"]
"""Gives the tensor of a name and a shape, if a checkpoint has it."""


def expert_stack(name: str, shape: tuple[int, ...], find: Find) -> Recipe | None:
    """The weights `name`[experts, out, in] from a matrix of each expert; None where `find` does not find them all."""
    kind = next((kind for kind in (GATE_UP, _DOWN) if name.endswith(f".{kind}")), None)
    if kind is None:
        return None
    count, rows, columns = shape
    path = name.removesuffix(kind) + "experts"
    for parts in (names[kind] for names in _MATRICES):
        matrix = (rows // len(parts), columns)
        found = [[find(f"{path}.{i}.{part}.weight", matrix) for i in range(count)] for part in parts]
        stacks = [
            Reshape(Concat(tuple(m for m in each if m is not None)), (count, *matrix)) for each in found if all(each)
        ]
        if len(stacks) == len(parts):
            return Concat(tuple(stacks), 1) if len(stacks) > 1 else stacks[0]
    return None


_NAMED_AS_MIXTRAL: Final = frozenset({"mixtral", "minimax", "minimax_m2"})
"""The architectures whose checkpoints have the second names of _MATRICES, in blocks called `block_sparse_moe`."""


def one_by_one(tensors: Iterable[WeightSymbol], model_type: str) -> list[WeightSymbol]:
    """`tensors` of a lifted model as its checkpoints hold them: of stacks of experts a matrix for each."""
    names = _MATRICES[model_type in _NAMED_AS_MIXTRAL]
    theirs = dict(zip(("gate_proj", "up_proj", "down_proj"), (*names[GATE_UP], *names[_DOWN])))
    found: list[WeightSymbol] = []
    for symbol in tensors:
        path, _, part = symbol.name.rpartition(".")
        if not path.endswith(".experts") or part not in theirs:
            found.append(symbol)
            continue
        count, *matrix = static_shape(symbol.type)
        for expert in range(count):
            one = Reshape(Slice(symbol.recipe, 0, expert, expert + 1), tuple(matrix))
            found.append(WeightSymbol(f"{path}.{expert}.{theirs[part]}.weight", one))
    if model_type in _NAMED_AS_MIXTRAL:
        found = [WeightSymbol(s.name.replace(".mlp.", ".block_sparse_moe."), s.recipe) for s in found]
    return found
