"""In which module of the model is an op drawn? Where it came from, unless several layers share it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ..ir import Op, Value, Weight, path_of

_LAYER: Final = re.compile(r"^(?:.*?\.)?\d+(?=\.|$)")
_NUMBER: Final = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


def module_paths(order: Sequence[Op]) -> dict[Op, str]:
    """The module path under which each op is drawn; `order` is topological.

    A weight belongs where its name says, if a user is in the same model. What several layers read and no weight of a
    layer had a part in (a mask, a constant) belongs to the module around those layers: that the first of them made it
    is an accident of lifting, and would tell that layer from its equals.
    """
    paths = {op: path_of(op) for op in order}
    own = _made_by_layers(order)
    shared: set[Op] = set()
    for op in reversed(order):
        users = [user for result in op.results for user in result.uses]
        layers = {_layer(paths[user]) for user in users}
        if isinstance(op, Weight) and (named := _named_path(op, [paths[user] for user in users])):
            paths[op] = named
            continue
        if _layer(paths[op]) and op not in own and (len(layers) > 1 or not shared.isdisjoint(users)):
            shared.add(op)
        if users and (op in shared or not op.operands):
            paths[op] = common_path([paths[user] for user in users])
    return paths


def input_path(value: Value, paths: Mapping[Op, str]) -> str:
    """The module that alone reads an input of its number (`past_key_values.3.key` in layer 3); else the outside."""
    shared = common_path([paths[user] for user in value.uses])
    return shared if set(_NUMBER.findall(value.name or "")) & set(_NUMBER.findall(shared)) else ""


def common_path(paths: Iterable[str]) -> str:
    """The innermost module path around all of `paths`."""
    split = [path.split(".") for path in paths]
    if not split:
        return ""
    # What the first and the last in order share, all between them share.
    first, last = min(split), max(split)
    length = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    return ".".join(first[:length])


def _layer(path: str) -> str:
    """The outermost numbered module around a path ("model.layers.3"), or the outside."""
    found = _LAYER.match(path)
    return found[0] if found else ""


def _made_by_layers(order: Sequence[Op]) -> set[Op]:
    """The ops in which a weight of some layer has a part."""
    found: set[Op] = set()
    for op in order:
        if isinstance(op, Weight):
            made = bool(_layer(op.symbol.name))
        else:
            made = any(value is not None and value.op in found for value in op.operands)
        if made:
            found.add(op)
    return found


def _named_path(op: Weight, users: Sequence[str]) -> str:
    named = op.symbol.name.rpartition(".")[0]
    root = named.split(".")[0]
    return named if any(user.split(".")[0] == root for user in users) else ""
