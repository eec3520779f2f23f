"""Which options hold for one layer? Values laid over a pass's own, for the weights and modules that a pattern names.

    quantize{scheme=int4}@"model.layers.{0..3}.*"{scheme=int8}@lm_head{scheme=int6}

A pattern is a glob (`*` and `?` cross dots) with ranges `{0..3}` and alternatives `{q,k,v}_proj`. It names weights and
module paths, and a module path stands for all that lies inside it. Later rows win.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import translate
from functools import cached_property
from typing import Any, Final, TypeVar

from .errors import InputError, UsageError
from .ir import Module, path_of
from .options import Configurable, format_value, quoted

C = TypeVar("C", bound=Configurable)

MAX_ALTERNATIVES: Final = 10_000
"""What the braces of one pattern may expand to."""

_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")


@dataclasses.dataclass(frozen=True)
class LayerPattern:
    """A pattern over weight names and module paths, such as `model.layers.{0..3}.*`. Raises UsageError if malformed."""

    text: str

    def __post_init__(self) -> None:
        self.regex  # noqa: B018  # a malformed pattern is refused where it is written

    @cached_property
    def regex(self) -> re.Pattern[str]:
        globs = [glob for plain in expand_braces(self.text) for glob in (plain, f"{plain}.*")]
        return re.compile("|".join(map(translate, globs)))

    def matches(self, name: str) -> bool:
        """Whether `name`, or a module that it lies in, is meant."""
        return self.regex.match(name) is not None


def expand_braces(pattern: str) -> list[str]:
    """`a.{0..2}.{q,k}` as six patterns without braces. Raises UsageError."""
    done, open_ = [pattern], True
    while open_:
        open_ = False
        expanded: list[str] = []
        for text in done:
            braces = _BRACES.search(text)
            if braces is None:
                expanded.append(text)
                continue
            open_ = True
            expanded += [text[: braces.start()] + word + text[braces.end() :] for word in _words(braces[1], pattern)]
            if len(expanded) > MAX_ALTERNATIVES:
                raise UsageError(f"the layer pattern '{pattern}' stands for more than {MAX_ALTERNATIVES:,} names")
        done = expanded
    if any("{" in text or "}" in text for text in done):
        raise UsageError(f"the braces of the layer pattern '{pattern}' do not pair", "write {0..3} or {q,k,v}")
    return done


def _words(inside: str, pattern: str) -> Sequence[str]:
    bounds = _RANGE.fullmatch(inside)
    if bounds is None:
        return inside.split(",")
    first, last = int(bounds[1]), int(bounds[2])
    if first > last or last - first >= MAX_ALTERNATIVES:
        raise UsageError(f"the range {{{inside}}} of the layer pattern '{pattern}' is empty or too long")
    return [str(number) for number in range(first, last + 1)]


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """Option values, by field, for what a pattern names."""

    pattern: LayerPattern
    values: Mapping[str, Any]

    def __str__(self) -> str:
        options = " ".join(f"{name.replace('_', '-')}={format_value(value)}" for name, value in self.values.items())
        return f"@{quoted(self.pattern.text)}{{{options}}}"


class Overlay:
    """The rows that lie over the options of one configured pass. It remembers which ones were of use."""

    def __init__(self, rows: Iterable[LayerRow] = ()) -> None:
        self.rows = tuple(rows)
        self._used: set[int] = set()
        self._made: dict[tuple[int, ...], Any] = {}

    def at(self, base: C, name: str) -> C:
        """`base` with the values of the rows that match `name`."""
        if not self.rows:
            return base
        hits = tuple(i for i, row in enumerate(self.rows) if row.pattern.matches(name))
        if not hits:
            return base
        self._used.update(hits)
        if hits not in self._made:
            values = {field: value for i in hits for field, value in self.rows[i].values.items()}
            self._made[hits] = dataclasses.replace(base, **values)  # type: ignore[type-var]  # passes are dataclasses
        made: C = self._made[hits]
        return made

    def begin(self, owner: str, module: Module) -> None:
        """Refuse a pattern that names nothing in `module`, before any work; forget earlier uses."""
        self._used.clear()
        names = known_names(module) if self.rows else []
        for row in self.rows:
            if not any(map(row.pattern.matches, names)):
                near = get_close_matches(row.pattern.text, names, 1, 0.5)
                hint = f"did you mean '{near[0]}'?" if near else f"weights are called {', '.join(names[:2])} ..."
                raise InputError(f"{owner}: the layer pattern '{row.pattern.text}' matches nothing", hint)

    def end(self, owner: str) -> None:
        """Refuse a pattern that was of no use to the pass."""
        for i, row in enumerate(self.rows):
            if i not in self._used:
                raise InputError(
                    f"{owner}: the layer pattern '{row.pattern.text}' matches nothing that {owner} changes",
                    "it names other weights or modules",
                )

    def __bool__(self) -> bool:
        return bool(self.rows)

    def __str__(self) -> str:
        return "".join(map(str, self.rows))


def known_names(module: Module) -> list[str]:
    """What a layer pattern can name: the weights, then the module paths of the ops."""
    paths = filter(None, map(path_of, module.graph.ops()))
    return list(dict.fromkeys([*module.weights, *paths]))
