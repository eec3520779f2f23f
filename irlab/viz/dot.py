"""How does a picture read as a Graphviz file? Nested clusters, colours by family, symbolic shapes on edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from html import escape
from typing import Any, Final

from .families import FAMILIES, Family
from .picture import ROOT, Edge, Group, Node, Picture
from .quantities import bytes_text, count_text

FONT: Final = "Helvetica,Arial,sans-serif"
TEXT: Final = "#22262c"
FAINT: Final = "#6b727d"
RULE: Final = "#c3c8d0"
GROUND: Final = ("#ffffff", "#f6f7f9")
"""The grounds of nested frames, in turn."""
MAX_ATTRIBUTES: Final = 4
MAX_TEXT: Final = 48
MAX_DEGREE: Final = 8
"""More edges than this at one end are told and not drawn."""


def draw(picture: Picture) -> Any:
    """`picture` as a `pydot.Dot`."""
    return _Drawing(picture).draw()


class _Drawing:
    def __init__(self, picture: Picture) -> None:
        import pydot

        self.pydot, self.picture = pydot, picture
        self.names = {name: f"n{number}" for number, name in enumerate(picture.nodes)}
        self.clusters: dict[str, Any] = {}
        self.frames = {name: f"g{number}" for number, name in enumerate(picture.groups)}
        self.weights = _weights_of_one_user(picture)
        self.far = _far_edges(picture)
        self.hidden = {weight.id for weights in self.weights.values() for weight in weights}

    def draw(self) -> Any:
        title = "\n".join(filter(None, (self.picture.name, self.picture.note)))
        drawing = self.pydot.Dot(
            _quote(self.picture.name),
            graph_type="digraph",
            bgcolor=_quote(GROUND[0]),
            fontname=_quote(FONT),
            fontcolor=_quote(TEXT),
            fontsize="18",
            label=_quote(title),
            labelloc="t",
            nodesep="0.3",
            ranksep="0.35",
            pad="0.3",
        )
        look = {"fontname": _quote(FONT), "fontcolor": _quote(TEXT), "fontsize": "11", "margin": _quote("0.12,0.06")}
        drawing.set_node_defaults(shape="box", style=_quote("filled,rounded"), height="0.3", **look)
        drawing.set_edge_defaults(
            fontname=_quote(FONT), fontcolor=_quote(FAINT), fontsize="9", color=_quote("#8a919c"), arrowsize="0.6"
        )
        self._fill(drawing, ROOT, ROOT, 0)
        for number, (edge, near) in enumerate(self.far.items()):
            self._add_reference(drawing, f"r{number}", edge, near)
        labelled: set[tuple[str, int]] = set()
        for edge in sorted(self.picture.edges, key=lambda edge: edge.carried):
            if edge.source not in self.hidden and edge not in self.far:
                # One label for a value that several ops read.
                value = (edge.source, edge.output)
                drawing.add_edge(self._edge(edge, "" if value in labelled else edge.type))
                labelled.add(value)
        drawing.add_node(self._legend())
        return drawing

    def _fill(self, into: Any, group: str, drawn: str, depth: int) -> None:
        """Add what is in `group` to `into`, the cluster of the group `drawn` (the innermost one that has a frame)."""
        for node in self.picture.members[group]:
            if node.id not in self.hidden:
                into.add_node(self._node(node, drawn))
        for child in self.picture.children[group]:
            if self._is_trivial(child):
                self._fill(into, child.id, drawn, depth)
            else:
                cluster = self._cluster(child, drawn, depth)
                self._fill(cluster, child.id, child.id, depth + 1)
                self.clusters[child.id] = cluster
                into.add_subgraph(cluster)

    def _is_trivial(self, group: Group) -> bool:
        """Whether a frame would only surround one op (its path goes into the op's text) or one other frame."""
        inner = self.picture.children[group.id]
        nodes = [node for node in self.picture.members[group.id] if node.id not in self.hidden]
        return group.kind == "module" and not group.note and len(nodes) + len(inner) <= 1

    def _cluster(self, group: Group, around: str, depth: int) -> Any:
        note = f'<font point-size="11"><b>{escape(group.note)}</b></font><br align="left"/>' if group.note else ""
        return self.pydot.Cluster(
            self.frames[group.id],
            label=f'<<font color="{FAINT}">{escape(_title(group, around))}</font><br align="left"/>{note}>',
            labeljust="l",
            fontname=_quote(FONT),
            fontsize="12",
            style=_quote("filled,rounded" if group.kind == "module" else "filled,dashed"),
            fillcolor=_quote(GROUND[(depth + 1) % len(GROUND)]),
            color=_quote(TEXT if group.note else RULE),
            penwidth="1.2" if group.note else "0.8",
            margin="10",
        )

    def _node(self, node: Node, around: str) -> Any:
        family = FAMILIES[node.family]
        return self.pydot.Node(
            self.names[node.id],
            label=self._label(node, around),
            fillcolor=_quote(family.fill),
            color=_quote(family.line),
            **({"shape": "ellipse"} if node.family in ("input", "output") else {}),
        )

    def _label(self, node: Node, around: str) -> str:
        """The name in bold, then where it is within its frame, its attributes, and the weights that are its alone."""
        if node.weight is not None:
            return f"<{_lines([_weight_title(node, around), _small(_weight_facts(node))])}>"
        lines = [f"<b>{escape(_cut(node.label))}</b>"]
        if node.family in ("input", "output"):
            lines += [_small(text) for text in node.types]
        inner = _within(node.path, around)
        if inner and node.family != "module":
            lines.append(_small(inner))
        said = [f"{name} = {_cut(value)}" for name, value in node.attributes.items()]
        if len(said) > MAX_ATTRIBUTES:
            said[MAX_ATTRIBUTES - 1 :] = ["..."]
        lines += [_small(text) for text in said]
        if node.family == "module" and node.bytes:
            lines.append(_small(f"{count_text(node.parameters)} parameters, {bytes_text(node.bytes)}"))
        weights = self.weights.get(node.id, ())
        if not weights:
            return f"<{_lines(lines)}>"
        fill = FAMILIES["weight"].fill
        rows = [f"<tr><td>{_lines(lines)}</td></tr>"]
        rows += [
            f'<tr><td bgcolor="{fill}" align="left">'
            f"{_lines([_weight_title(weight, around), _small(_weight_facts(weight))])}</td></tr>"
            for weight in weights
        ]
        return f'<<table border="0" cellborder="0" cellspacing="2" cellpadding="3">{"".join(rows)}</table>>'

    def _edge(self, edge: Edge, label: str) -> Any:
        carried = {"style": "dashed", "constraint": "false"} if edge.carried else {}
        source, target = self.names[edge.source], self.names[edge.target]
        return self.pydot.Edge(source, target, label=_quote(f" {label}" if label else ""), **carried)

    def _add_reference(self, drawing: Any, name: str, edge: Edge, near: str) -> None:
        """A small sign beside the node `near` that names the other end of a far edge, in the frame of that node."""
        if edge.source in self.hidden:
            return
        other = self.picture.nodes[edge.target if near == edge.source else edge.source]
        sign = self.pydot.Node(
            name,
            label=f"<{_small(_cut(other.weight.name if other.weight else other.label))}>",
            shape="plain",
            style=_quote(""),
        )
        (self.clusters.get(self._frame(near)) or drawing).add_node(sign)
        ends = (self.names[near], name) if near == edge.source else (name, self.names[near])
        drawing.add_edge(self.pydot.Edge(*ends, style="dotted"))

    def _frame(self, node: str) -> str:
        """The innermost group around a node that has a frame."""
        group = self.picture.nodes[node].group
        return next((name for name in self.picture.around(group) if name in self.clusters), ROOT)

    def _legend(self) -> Any:
        used = {node.family for node in self.picture.nodes.values()}
        rows = [_legend_row(family) for family in FAMILIES.values() if family.name in used]
        return self.pydot.Node(
            "legend",
            shape="plain",
            style=_quote(""),
            label=f'<<table border="0" cellborder="0" cellspacing="2" cellpadding="2">{"".join(rows)}</table>>',
        )


def _weights_of_one_user(picture: Picture) -> dict[str, list[Node]]:
    """By op, the weights that it alone reads: they are drawn inside it."""
    users: dict[str, set[str]] = {}
    for edge in picture.edges:
        users.setdefault(edge.source, set()).add(edge.target)
    found: dict[str, list[Node]] = {}
    for node in picture.nodes.values():
        if node.weight is not None and len(users.get(node.id, ())) == 1:
            found.setdefault(next(iter(users[node.id])), []).append(node)
    return found


def _far_edges(picture: Picture) -> dict[Edge, str]:
    """The edges of values that many ops read (a mask), and those into ops that read many values (the return), each with
    the end beside which it is told instead of drawn: graphviz takes minutes over edges that run past whole layers.
    The first of those that leave a node, and the last of those that enter one, are drawn: they give it its place."""
    into, out_of = {edge.target: edge for edge in picture.edges}, {edge.source: edge for edge in picture.edges[::-1]}
    reads, read = Counter(edge.target for edge in picture.edges), Counter(edge.source for edge in picture.edges)
    far: dict[Edge, str] = {}
    for edge in picture.edges:
        if reads[edge.target] > MAX_DEGREE and edge is not into[edge.target]:
            far[edge] = edge.source
        elif read[edge.source] > MAX_DEGREE and edge is not out_of[edge.source]:
            far[edge] = edge.target
    return far


def _weight_title(node: Node, around: str) -> str:
    assert node.weight is not None
    return escape(_cut(_within(node.weight.name, around)))


def _weight_facts(node: Node) -> str:
    assert node.weight is not None
    return f"{node.types[0]}  {bytes_text(node.weight.bytes)}"


def _legend_row(family: Family) -> str:
    swatch = f'<td bgcolor="{family.fill}" border="1" color="{family.line}" width="18"></td>'
    return f'<tr>{swatch}<td align="left"><font point-size="10" color="{FAINT}">{family.name}</font></td></tr>'


def _title(group: Group, around: str) -> str:
    """The name of a frame; the number of a layer says little without its list."""
    if group.kind == "region":
        return group.label
    name = _within(group.id, around)
    return f"{group.parent.rpartition('.')[2]}.{name}" if name.isdigit() and group.parent else name


def _within(path: str, around: str) -> str:
    """`path` as seen from inside the frame `around`."""
    return path.removeprefix(around).lstrip(".:") if path.startswith(around) else path


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT // 2 - 2]} ... {text[-MAX_TEXT // 2 + 2 :]}"


def _small(text: str) -> str:
    return f'<font point-size="9" color="{FAINT}">{escape(text)}</font>'


def _lines(lines: Iterable[str]) -> str:
    return "<br/>".join(lines)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
