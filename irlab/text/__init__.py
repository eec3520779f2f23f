"""IR text: what a module looks like to a reader, and how it is read back.

words.py       names, quotes, reserved words       cursor.py      white space, tokens, error positions
attributes.py  values as text, what may be left out  values.py    text as values: sizes, types, lists, recipes
recipes.py     weight recipes as expressions       signatures.py  how op classes are called
printer.py     module -> text                      graphs.py      text -> graph
                                                   parser.py      text -> module
"""

from __future__ import annotations

from .parser import parse_module
from .printer import excerpt, print_graph, print_module

__all__ = ["excerpt", "parse_module", "print_graph", "print_module"]
