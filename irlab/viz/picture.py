"""What does a picture of a graph consist of? Nodes, edges and nested groups: what every format draws.

`picture_of(module)` (from_graph.py) takes the picture, `fold` draws equal layers once, `collapse` draws groups as
single nodes. All are values: they refer to no op, so a picture taken before a pass compares with the one after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..dims import Size

ROOT = ""
"""The id of the outermost group, which `Picture.groups` does not list."""


@dataclass(frozen=True, slots=True)
class WeightInfo:
    """What a weight is: `element` is its dtype or encoding in IR text, `bytes` what it takes as stored."""

    name: str
    element: str
    shape: tuple[int, ...]
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Node:
    """One op, or an input of a graph.

    `id` is the same in every picture of the same op, also of a clone of the graph: `prim.add:17` (name and place),
    `@name` for a weight, `%name` for an input. `op` is the name in IR text ("input" for inputs), `family` a key of
    `FAMILIES`, `group` the innermost group around it. `attributes` are those that differ from their defaults, as in IR
    text. `types` are the types of the results. `flops` is the work of the op (see irlab/cost.py), None where unknown.
    `parameters` and `bytes` are those of a weight's own, and otherwise of the weights that the op reads.
    """

    id: str
    op: str
    family: str
    label: str
    group: str = ROOT
    attributes: Mapping[str, str] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    path: str = ""
    source: str = ""
    made_by: str = ""
    weight: WeightInfo | None = None
    parameters: int = 0
    bytes: int = 0
    flops: Size | None = 0

    @property
    def is_leaf(self) -> bool:
        """Whether nothing is computed here: a weight, a constant or an input."""
        return self.family in ("weight", "constant", "input")


@dataclass(frozen=True, slots=True)
class Edge:
    """A value: result number `output` of `source`, read as the operand named `operand` of `target`.

    `type` is the type in IR text, symbolic sizes and all. `carried` edges exist through folding only: they go from the
    end of a layer that stands for several back to its beginning.
    """

    source: str
    target: str
    type: str
    operand: str = ""
    output: int = 0
    carried: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """A module of the model, or a region of an op, around nodes and other groups.

    `id` is the module path ("model.layers.0"), `parent` the id of the group around it. `note` says which groups it
    stands for ("layers 1-21: same as layer 0"); `folded` are their ids.
    """

    id: str
    label: str
    parent: str = ROOT
    kind: str = "module"
    note: str = ""
    folded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A graph to be drawn. `nodes` are in topological order, `groups` outer before inner, both by id.

    `shown` maps the id of each node or group that was folded or collapsed away to the one that is drawn in its place,
    so that a figure known for layer 7 finds the layer that stands for it. `note` says how the picture was simplified.
    """

    name: str
    nodes: Mapping[str, Node]
    edges: tuple[Edge, ...]
    groups: Mapping[str, Group]
    shown: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @cached_property
    def members(self) -> Mapping[str, list[Node]]:
        """The nodes directly inside each group, `ROOT` included."""
        found: dict[str, list[Node]] = {ROOT: [], **{group: [] for group in self.groups}}
        for node in self.nodes.values():
            found[node.group].append(node)
        return found

    @cached_property
    def children(self) -> Mapping[str, list[Group]]:
        """The groups directly inside each group, `ROOT` included."""
        found: dict[str, list[Group]] = {ROOT: [], **{group: [] for group in self.groups}}
        for group in self.groups.values():
            found[group.parent].append(group)
        return found

    def inside(self, group: str) -> Iterator[Node]:
        """The nodes of a group and of the groups in it."""
        yield from self.members[group]
        for child in self.children[group]:
            yield from self.inside(child.id)

    def around(self, group: str) -> Iterator[str]:
        """`group` and the groups around it, innermost first, without `ROOT`."""
        while group != ROOT:
            yield group
            group = self.groups[group].parent
