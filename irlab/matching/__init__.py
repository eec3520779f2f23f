"""Finding what a pattern describes: patterns are compiled to functions of an op.

match.py     what a match holds            compiler.py  pattern -> matcher
source.py    writing Python functions
"""

from __future__ import annotations

from .compiler import Matcher, compile_pattern
from .match import Match, match_class

__all__ = ["Match", "Matcher", "compile_pattern", "match_class"]
