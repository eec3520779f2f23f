"""Pictures of modules: `dump(module, "graph.svg")`; the suffix of the file says in which format."""

from __future__ import annotations

from .collapse import collapse, fit, inline_constants
from .families import FAMILIES, Family
from .fold import fold
from .from_graph import picture_of
from .picture import ROOT, Edge, Group, Node, Picture, WeightInfo
from .to_networkx import to_networkx
from .write import WRITERS, Request, dump, require_format

__all__ = [
    "FAMILIES",
    "ROOT",
    "WRITERS",
    "Edge",
    "Family",
    "Group",
    "Node",
    "Picture",
    "Request",
    "WeightInfo",
    "collapse",
    "dump",
    "fit",
    "fold",
    "inline_constants",
    "picture_of",
    "require_format",
    "to_networkx",
]
