"""What does the page know? A timeline as one JSON value: tables of strings, ops, weights, boxes and layouts.

Whatever occurs often is written once and referred to by its index: a string, an op version, a box whose contents did
not change between two states, a layout that several boxes share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..cost import DEFAULT_SIZES, at
from ..dims import Size as Count
from ..opdef import OPS
from ..text.recipes import recipe_text
from ..types import TensorType
from ..weights import FileTensor, WeightSymbol
from .families import FAMILIES
from .layout import Size, lay_out
from .module_tree import Box, looks, module_tree
from .text_diff import diff
from .timeline import OpVersion, Step, Timeline
from .weight_statistics import WeightStatistics

CHARACTER: Final = 6.9
"""Pixels that a character of a label takes; labels are set in a font of equal widths."""

LINE, PADDING, MIN_WIDTH, MAX_WIDTH = 16, 12, 96, 260
PORT: Final[Size] = (96, 18)
RECIPE_LENGTH: Final = 200
"""Longer recipes are cut."""


def page_data(timeline: Timeline, statistics: Mapping[int, WeightStatistics]) -> dict[str, Any]:
    """The data of the page: JSON values only. `statistics` are those of `timeline.weights`, by index."""
    return _Packer(timeline).pack(statistics)


class _Packer:
    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.strings: dict[str, int] = {}
        self.layouts: dict[object, int] = {}
        self.layout_rows: list[list[Any]] = []
        self.boxes: dict[object, int] = {}
        self.box_rows: list[list[Any]] = []
        self.types: dict[TensorType, str] = {}
        self.directory = _directory(timeline.weights)

    def pack(self, statistics: Mapping[int, WeightStatistics]) -> dict[str, Any]:
        timeline = self.timeline
        trees = [module_tree(timeline.versions, state.versions) for state in timeline.states]
        states = [{"root": self._box(tree, None), "bytes": state.bytes} for tree, state in zip(trees, timeline.states)]
        versions = [self._version(version) for version in timeline.versions]
        weights = [self._weight(symbol, statistics.get(i)) for i, symbol in enumerate(timeline.weights)]
        steps = [self._step(step, trees) for step in timeline.steps]
        origins = {
            uid: [self._string(origin.rule), *origin.sources] for uid, origin in sorted(timeline.origins.items())
        }
        used = {version.opname for version in timeline.versions}
        return {
            "name": timeline.name,
            "tokens": DEFAULT_SIZES["seq"],
            "families": {family.name: [family.fill, family.line] for family in FAMILIES.values()},
            "opDocs": {name: _summary(OPS[name].__doc__) for name in sorted(used & OPS.keys())},
            "states": states,
            "steps": steps,
            "versions": versions,
            "weights": weights,
            "origins": origins,
            "boxes": self.box_rows,
            "layouts": self.layout_rows,
            "strings": list(self.strings),
        }

    def _string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings))

    def _strings(self, texts: Sequence[str]) -> list[int]:
        return [self._string(text) for text in texts]

    def _version(self, version: OpVersion) -> list[Any]:
        loc = version.loc
        return [
            version.uid,
            self._string(version.opname),
            self._string(version.family),
            self._string(version.text),
            self._strings(version.outs),
            self._strings(version.types),
            [self._string(text) for pair in version.ins for text in pair],
            [self._string(text) for pair in version.attributes for text in pair],
            [part for name, weight in version.weights for part in (self._string(name), weight)],
            *self._strings([version.path, loc.path, loc.source, loc.made_by, self._weight_line(version)]),
            _flops_per_token(version.flops),
        ]

    def _weight_line(self, version: OpVersion) -> str:
        """The weights of an op as its label shows them."""
        symbols = [self.timeline.weights[index] for _, index in version.weights]
        types = {_short(symbol.type) for symbol in symbols}
        if len(symbols) == 1:
            return types.pop()
        elements = {text.split(" [")[0] for text in types}
        return f"{len(symbols)} × {elements.pop() if len(elements) == 1 else 'weights'}" if symbols else ""

    def _weight(self, symbol: WeightSymbol, statistics: WeightStatistics | None) -> list[Any]:
        type_ = symbol.type
        size = type_.size if isinstance(type_.size, int) else 0
        texts = [symbol.name, self._type(type_), _element(type_), self._recipe(symbol)]
        return [*self._strings(texts), size, symbol.size_bytes, self._statistics(statistics)]

    def _recipe(self, symbol: WeightSymbol) -> str:
        text = recipe_text(symbol.recipe, symbol.type, self.directory)
        return text if len(text) <= RECIPE_LENGTH else text[:RECIPE_LENGTH] + "…"

    def _type(self, type_: TensorType) -> str:
        text = self.types.get(type_)
        if text is None:
            text = self.types[type_] = str(type_)
        return text

    def _statistics(self, found: WeightStatistics | None) -> dict[str, Any] | int | None:
        """A number stands for the reason why there are none: it is the same for most weights."""
        if found is None or found.missing:
            return None if found is None else self._string(found.missing.replace(f"{self.directory}{os.sep}", ""))
        return {
            "seen": found.seen,
            "min": found.minimum,
            "max": found.maximum,
            "mean": found.mean,
            "deviation": found.deviation,
            "zeros": found.zeros,
            "notFinite": found.not_finite,
            "reach": found.reach,
            "histogram": found.histogram,
            "error": found.error,
        }

    # Boxes

    def _box(self, box: Box, alike: Mapping[int, int] | None) -> int:
        """The index of a box; one that did not change since an earlier state is written once."""
        alike = alike or looks(box, self.timeline.versions)
        children = [~self._box(child, alike) if isinstance(child, Box) else child for child in box.children]
        key = (box.path, box.label, box.stack, tuple(children), tuple(box.ins), tuple(box.outs), tuple(box.edges))
        index = self.boxes.get(key)
        if index is None:
            index = self.boxes[key] = len(self.box_rows)
            ports = [[self._strings(port) for port in ports] for ports in (box.ins, box.outs)]
            texts = self._strings([box.path, box.label])
            self.box_rows.append([*texts, int(box.stack), children, *ports, self._layout(box)])
        return index

    def _layout(self, box: Box) -> int:
        sizes = [self._size(child, box) for child in box.children] + [PORT] * (len(box.ins) + len(box.outs))
        key = (tuple(sizes), len(box.ins), len(box.outs), tuple(box.edges))
        index = self.layouts.get(key)
        if index is None:
            index = self.layouts[key] = len(self.layout_rows)
            found = lay_out(sizes, len(box.ins), len(box.outs), box.edges)
            self.layout_rows.append([found.width, found.height, sizes, found.centres, found.edges])
        return index

    def _size(self, child: Box | int, box: Box) -> Size:
        """How large a child is drawn while it is folded."""
        if isinstance(child, Box):
            return _fitting([child.label, "0,000 ops · 0.00 GiB"], 2)
        version = self.timeline.versions[child]
        title = version.opname
        if version.path not in ("", box.path):
            title += "  " + version.path.rpartition(".")[2]
        lines = [title, version.types[0] if version.types else "", self._weight_line(version)]
        return _fitting(lines, 1 + sum(map(bool, lines[1:])))

    # Steps

    def _step(self, step: Step, trees: Sequence[Box]) -> dict[str, Any]:
        record = step.record
        rules = {
            name: {
                "hits": hits,
                "seconds": record.rule_seconds.get(name, (None,))[0],
                "matched": step.rules[name].ops_matched if name in step.rules else None,
                "made": step.rules[name].ops_made if name in step.rules else None,
            }
            for name, hits in record.rules.items()
        }
        return {
            "text": step.text,
            "summary": step.summary,
            "exactness": step.exactness,
            "depth": step.depth,
            "before": step.before,
            "after": step.after,
            "seconds": record.seconds,
            "rewrites": record.rewrites,
            "weightsComputed": record.weights_computed,
            "rules": rules,
            "metrics": record.metrics,
            "series": record.series,
            "layers": record.layers,
            "error": step.error,
            "diff": self._diff(trees[step.before], trees[step.after]),
        }

    def _diff(self, before: Box, after: Box) -> dict[str, Any]:
        folded = set(_folded(before)) & set(_folded(after))
        states = [list(_shown(tree, folded)) for tree in (before, after)]
        versions, weights = self.timeline.versions, self.timeline.weights
        read = [{weights[w].name: w for op in state for _, w in versions[op].weights} for state in states]
        names = list(read[0] | read[1])
        tables = [[each[name] for name in names if name in each] for each in read]
        rows = [f"@{symbol.name} : {symbol.type} = {self._recipe(symbol)}" for symbol in weights]
        return {
            "weights": [[line.tag, line.item] for line in diff(tables[0], tables[1], rows)],
            "ops": [[line.tag, line.item] for line in diff(states[0], states[1], [v.text for v in versions])],
            "folded": len(folded),
        }


def _folded(box: Box) -> Iterator[str]:
    """The paths of the boxes in stacks."""
    for child in box.boxes():
        if child.stack:
            yield from (layer.path for layer in child.boxes())
        else:
            yield from _folded(child)


def _shown(box: Box, folded: set[str]) -> Iterator[int]:
    for child in box.children:
        if isinstance(child, int):
            yield child
        elif child.path not in folded:
            yield from _shown(child, folded)


def _fitting(lines: Sequence[str], height: int) -> Size:
    width = max(map(len, lines)) * CHARACTER + 2 * PADDING
    return round(min(MAX_WIDTH, max(MIN_WIDTH, width))), height * LINE + PADDING


def _element(type_: TensorType) -> str:
    """How the numbers are stored, in short: `bf16`, `int4 g32`."""
    encoding = type_.encoding
    if encoding is None:
        return type_.dtype.name
    kind, *rest = encoding.arguments() or (encoding.family,)
    groups = [argument.replace("group=", "g") for argument in rest if argument.startswith("group=")]
    return " ".join([kind, *groups])


def _directory(weights: Sequence[WeightSymbol]) -> Path | None:
    """Where the files lie that weights come from. Pages are handed on: they say nothing of the disk they come from."""
    recipes = [symbol.recipe for symbol in weights]
    for recipe in recipes:
        if isinstance(recipe, FileTensor):
            return recipe.path.parent
        recipes += recipe.inputs
    return None


def _short(type_: TensorType) -> str:
    return f"{_element(type_)} [{', '.join(map(str, type_.shape))}]"


def _flops_per_token(size: Count | None) -> float | None:
    return None if size is None else at(size, DEFAULT_SIZES) / DEFAULT_SIZES["seq"]


def _summary(doc: str | None) -> str:
    return (doc or "").strip().split("\n")[0]
