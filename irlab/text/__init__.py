"""IR text: what a module looks like to a reader, and how it is read back."""

from __future__ import annotations

from .printer import print_graph, print_module, print_ops

__all__ = ["print_graph", "print_module", "print_ops"]
