"""A rule: a pattern, an optional condition, a replacement."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Final

from ..errors import IRError
from ..ir import Value
from ..matching import Match, Matcher, compile_pattern
from ..pattern import Pattern, PatternError, Variable
from ..pattern.walk import variables

_WORD_BOUNDARY: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Rule:
    """A rewrite: a pattern, an optional condition, a replacement. `name` defaults to the class name in kebab case.

    `pattern` takes the pattern's variables by name and returns what it looks for; a tuple has several roots.
    `rewrite` gives the value that takes the place of the matched one: a new expression, or a value that is there
    already. For an op with several results, or several roots, it gives a tuple, one value for each result.
    """

    name: ClassVar[str] = "rule"

    def __init_subclass__(cls, name: str = "", **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if name or "name" not in vars(cls):
            cls.name = name or _WORD_BOUNDARY.sub("-", cls.__name__).lower()

    def pattern(self, *variables: Any, **keywords: Any) -> Pattern | tuple[Pattern, ...]:
        """What the rule looks for, written with `p` over its own parameters."""
        raise PatternError(f"rule {self.name} has no pattern")

    def where(self, m: Match) -> bool | str:
        """A last condition on a complete match; False or a reason lets the matcher look for another one."""
        return True

    def rewrite(self, m: Match) -> Value | tuple[Value, ...]:
        """The replacement."""
        raise IRError(f"rule {self.name} has no replacement")

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """The roots of the pattern."""
        return patterns_of(self.pattern, f"rule {self.name}")

    @cached_property
    def matchers(self) -> list[Matcher]:
        """The compiled pattern; their `source` is Python."""
        where = self.where if type(self).where is not Rule.where else None
        return compile_pattern(self.patterns, self.name, where)


def patterns_of(function: Callable[..., object], owner: str) -> tuple[Pattern, ...]:
    """The pattern that a function of pattern variables describes."""
    parameters = inspect.signature(function).parameters
    made = function(*[Variable(name) for name in parameters])
    roots = made if isinstance(made, tuple) else (made,)
    if not all(isinstance(root, Pattern) for root in roots):
        raise PatternError(f"{owner}: the pattern is {made!r}", "return what p builds")
    used = {variable.name for variable in variables(roots)}
    unused = [name for name in parameters if name not in used]
    if unused:
        raise PatternError(f"{owner}: the pattern never uses {', '.join(unused)}")
    return roots
