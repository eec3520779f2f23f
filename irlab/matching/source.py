"""Writing a Python function that searches: guards, locals, and loops over candidates.

Every guard that fails goes to the next candidate of the innermost loop (`continue`), or gives up (`return None`).
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any, Final, TypeAlias

MAX_NESTED_LOOPS: Final = 16  # CPython allows 20 nested blocks in one function

Continuation: TypeAlias = Callable[[], None]
"""Writes what follows a success."""


class Source:
    """The source of a function of one `argument`, line by line. `scope` holds its globals."""

    def __init__(self, argument: str, scope: dict[str, Any]) -> None:
        self.argument, self.scope = argument, scope
        self.lines: list[str] = []
        self.parts: list[str] = []  # finished functions
        self.depth, self.loops, self.count = 1, 0, 0
        self.locals = [argument]

    def emit(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def assign(self, stem: str, expression: str) -> str:
        """A new local that holds `expression`."""
        self.locals.append(self.fresh(stem))
        self.emit(f"{self.locals[-1]} = {expression}")
        return self.locals[-1]

    def constant(self, thing: object) -> str:
        name = self.fresh("K")
        self.scope[name] = thing
        return name

    def guard(self, condition: str) -> None:
        """What follows happens only where `condition` holds."""
        self.emit(f"if not ({condition}):")
        self.emit("    continue" if self.loops else "    return None")

    def loop(self, targets: list[str], candidates: str, then: Continuation) -> None:
        if self.loops == MAX_NESTED_LOOPS:
            self.outline(lambda: self.loop(targets, candidates, then))
            return
        self.locals += targets
        self.emit(f"for {', '.join(targets)} in {candidates}:")
        self.depth, self.loops = self.depth + 1, self.loops + 1
        then()
        self.depth, self.loops = self.depth - 1, self.loops - 1

    def outline(self, then: Continuation) -> None:
        """Go on in a function of its own, where loops count from zero."""
        name, arguments = self.fresh("part"), ", ".join(self.locals)
        self.emit(f"found = {name}({arguments})")
        self.emit("if found is not None:")
        self.emit("    return found")
        saved = self.lines, self.depth, self.loops
        self.lines, self.depth, self.loops = [f"def {name}({arguments}):"], 1, 0
        then()
        self.parts.append("\n".join(self.lines))
        self.lines, self.depth, self.loops = saved

    def compile(self, name: str, title: str) -> tuple[Callable[..., Any], str]:
        """The function, called `name`, and its source, which tracebacks show under `title`."""
        self.parts.append("\n".join([f"def {name}({self.argument}):", *self.lines]))
        source = "\n\n".join(self.parts) + "\n"
        filename = f"<{title}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        exec(compile(source, filename, "exec"), self.scope)
        function: Callable[..., Any] = self.scope[name]
        return function, source
