"""Which weights may be stored encoded, and how does the graph come to read the encoded ones?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from fnmatch import fnmatchcase

from irlab.encodings import Encoding
from irlab.errors import InputError
from irlab.ir import Graph, Module, Op
from irlab.ops import nn, prim
from irlab.ops.nn import NNOp
from irlab.passmgr import note
from irlab.weight_uses import WeightUses, graphs, read_together, replace_weights, weight_uses
from irlab.weights import Encode, Ends, Recipe, WeightSymbol, static_shape


class Role(Enum):
    """What the uses of a weight, all together, make of it."""

    MATRIX = "matrix"
    EMBEDDING = "embedding"
    """A table of rows; also one that is tied to an output head."""
    STACK = "stack"
    """The matrices of several experts in one tensor."""


@dataclass(frozen=True)
class Candidate:
    """A weight that every use of it could read encoded."""

    symbol: WeightSymbol
    role: Role
    is_tied: bool = False
    """Whether it is both a table of rows and a matrix of a product."""


def candidates(graph: Graph, *, encoded: bool = False, stacks: bool = False) -> list[Candidate]:
    """The weights that are read as matrices of products or as embedding tables, and in no other way, and that are
    plain floats now; or those that are `encoded`. With `stacks` also those that hold the matrices of experts. What
    chooses experts is never among them."""
    found = []
    for uses in weight_uses(graph).values():
        kind = uses.symbol.type
        roles = _roles(uses)
        wanted = roles and (stacks or Role.STACK not in roles)
        if wanted and (kind.encoding is not None) == encoded and kind.dtype.is_float:
            # A head that is tied to the embedding goes where the embedding goes.
            role = next(role for role in (Role.EMBEDDING, Role.STACK, Role.MATRIX) if role in roles)
            found.append(Candidate(uses.symbol, role, len(roles) > 1))
    return found


def select_matrices(
    graph: Graph, exclude: tuple[str, ...] = (), *, encoded: bool = False, counts: Counter[str] | None = None
) -> dict[str, WeightSymbol]:
    """The `candidates` that are matrices and nothing else, by name, without those that match `exclude`. `counts` is
    told why others are left alone."""
    found = {}
    for candidate in candidates(graph, encoded=encoded):
        name, reason = candidate.symbol.name, ""
        if candidate.role is Role.EMBEDDING:
            reason = "keep-embedding"
        elif excluded(name, exclude):
            reason = "keep-excluded"
        if not reason:
            found[name] = candidate.symbol
        elif counts is not None:
            counts[reason] += 1
    return found


def note_experts(module: Module, owner: str) -> None:
    """Say that the matrices of experts, where `module` has some, are none that `owner` changes."""
    if any(
        c.role is Role.STACK
        for encoded in (False, True)
        for c in candidates(module.graph, encoded=encoded, stacks=True)
    ):
        note(
            module,
            f"{owner} leaves the matrices of experts as they are: tokens choose among them, which it does not know",
        )


def before_encoding(reason: str = "codes are fixed once they are found") -> dict[str, str]:
    """For `before=` of a pass that changes numbers of matrices: the passes that encode them, with the reason."""
    return dict.fromkeys(("quantize", "mixed-precision", "share-weights", "hash-weights"), reason)


def require_plain(graph: Graph, exclude: tuple[str, ...], owner: str) -> None:
    """Refuse a matrix that `owner` would change and that is stored encoded already."""
    for name, symbol in select_matrices(graph, exclude, encoded=True).items():
        hint = f"put {owner} before quantize (codes are fixed once they are found), or exclude={name}"
        raise InputError(f"{owner}: weight '{name}' is stored as {symbol.type.encoding} already", hint)


def require_fit(symbol: WeightSymbol, encoding: Encoding, owner: str, hint: str) -> None:
    """Refuse a weight whose shape `encoding` does not take, which `owner` would store so."""
    try:
        encoding.check_shape(static_shape(symbol.type))
    except InputError as error:
        raise InputError(f"{owner}: weight '{symbol.name}': {error.message}", hint) from None


def excluded(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a weight of this name matches one of `patterns` (`*`, `?`, `[...]`, as in file names)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def require_matches(patterns: tuple[str, ...], module: Module, owner: str) -> None:
    """Refuse a pattern of weights to leave alone that names no weight of `module`."""
    names = list(module.weights)
    for pattern in patterns:
        if not any(excluded(name, (pattern,)) for name in names):
            near = get_close_matches(pattern, names, 1, 0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"weights are called {', '.join(names[:2])} ..."
            raise InputError(f"{owner}: exclude={pattern} matches no weight", hint)


def encode_weights(
    graph: Graph,
    encodings: Mapping[str, Encoding],
    norm: float = 2.0,
    importances: Mapping[str, Recipe] = {},
) -> None:
    """Let the weights of these names be read encoded, with the least error in this `norm`, weighted by `importances` of
    columns where they are known (see `Encode`); embeddings are cast to the dtype that they gave before."""
    weights = graph.weights()
    ends = _shared_ends(graph, weights, encodings)
    replace_weights(
        graph,
        {
            name: WeightSymbol(
                name, Encode(weights[name].recipe, encoding, norm, importances.get(name), ends.get(name))
            )
            for name, encoding in encodings.items()
        },
    )
    for each in graphs(graph):
        for op in each.find(nn.Embedding):
            weight = op.weight.type
            before = op.result.type
            if weight.encoding is not None and before.dtype is not weight.dtype:
                each.replace(op, prim.cast(nn.embedding(op.ids, op.weight), before.dtype))


def _is_router(op: Op) -> bool:
    """Whether `op` chooses experts: its matrix is small, and errors of it send tokens elsewhere."""
    return isinstance(op, nn.Linear) and any(isinstance(u, nn.MoE) and u.logits is op.result for u in op.result.uses)


def _shared_ends(
    graph: Graph, weights: Mapping[str, WeightSymbol], encodings: Mapping[str, Encoding]
) -> dict[str, Recipe]:
    """The ends that a scale of the tensor reaches, one for all matrices that read the same value: vLLM and TensorRT-LLM
    multiply q, k and v, or gate and up, as one matrix under one such scale, the largest of them."""
    found: dict[str, Recipe] = {}
    for names in read_together(graph) if any(encoding.tensor_wide for encoding in encodings.values()) else ():
        wide = [name for name in names if name in encodings and encodings[name].tensor_wide]
        for encoding in dict.fromkeys(encodings[name] for name in wide):
            alike = [name for name in wide if encodings[name] == encoding and name not in found]
            if len(alike) > 1:
                ends = Ends(tuple(weights[name].recipe for name in alike))
                found |= dict.fromkeys(alike, ends)
    return found


def _roles(uses: WeightUses) -> set[Role]:
    """What the uses make of a weight; nothing where one of them is neither."""
    roles = set()
    for op, operand in uses.users:
        if isinstance(op, nn.Embedding) and operand == "weight":
            roles.add(Role.EMBEDDING)
        elif _is_router(op):
            return set()
        elif isinstance(op, NNOp) and operand in op.matrices:
            roles.add(Role.MATRIX)
        elif isinstance(op, NNOp) and operand in op.stacks:
            roles.add(Role.STACK)
        else:
            return set()
    return roles
