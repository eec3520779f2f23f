"""What a pattern matched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..ir import Op
from ..pattern import PatternError


class Match:
    """What a pattern matched. Captured values, numbers, attributes and flags are attributes by their names; those of
    an alternative that was not taken are None."""

    __slots__ = ("_matched", "root")

    root: Op
    _matched: tuple[Op | None, ...]
    root_count = 1
    names: tuple[str, ...] = ()

    if TYPE_CHECKING:  # at run time, every pattern has a subclass with one slot per name

        def __getattr__(self, name: str) -> Any: ...

    @property
    def ops(self) -> tuple[Op, ...]:
        """Every matched op, the roots first."""
        return tuple(dict.fromkeys([op for op in self._matched if op is not None]))

    @property
    def roots(self) -> tuple[Op, ...]:
        """The ops whose results the rewrite replaces; one, unless the pattern is a tuple."""
        return self.ops[: self.root_count]

    @property
    def captures(self) -> dict[str, Any]:
        """Everything captured, by name."""
        return {name: getattr(self, name) for name in self.names}

    def __repr__(self) -> str:
        return f"<match of {self.root!r}: {', '.join(f'{k}={v!r}' for k, v in self.captures.items())}>"


def match_class(names: tuple[str, ...], root_count: int) -> type[Match]:
    """The class of the matches of one pattern."""
    taken = [name for name in names if hasattr(Match, name)]
    if taken:
        raise PatternError(f"a variable cannot be called {taken[0]!r}", "every match has an attribute of that name")
    return type("Match", (Match,), {"__slots__": names, "names": names, "root_count": root_count})
