"""From a module to IR text, in columns: results, calls, types, locations.

Weights and constants of rank 0 are written where they are used. Printing never fails on a graph that breaks a rule of
the IR, because the verifier shows broken graphs: a value of unknown origin is `%?0`, a cycle leaves the order of `seq`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TypeAlias

from ..errors import IRError
from ..ir import UNKNOWN_LOC, Graph, Loc, Module, Op, Return, Value, Weight
from ..opdef import REQUIRED, Field
from ..ops.call import Call
from ..ops.literals import Constant
from ..types import DType, Kind, TensorType
from ..weights import WeightSymbol
from .attributes import field_writer, float_text, repeats_types, value_text
from .recipes import recipe_text
from .words import VERSION, name_text, quote

LINE_WIDTH: Final = 100
"""Longer signatures, returns and metadata take several lines."""

MAX_RESULT_WIDTH, MAX_CALL_WIDTH, MAX_TYPE_WIDTH, MAX_NAME_WIDTH = 8, 88, 48, 72
"""A cell wider than this does not widen its column."""

INDENT: Final = "  "

_AttributeWriter: TypeAlias = "tuple[str, Callable[[Any], str], str | None, Callable[[Op, Any], bool] | None]"
"""Name, how to write a value, the default's text, and whether a value only repeats the result types."""

_Plan: TypeAlias = "tuple[str, list[_AttributeWriter]]"
"""What the lines of one op class begin with, and its attributes."""


def print_module(module: Module, directory: Path | None = None) -> str:
    """The whole module as IR text; `parse_module` reads it back. Weight files are named relative to `directory`, where
    the text will lie; without it as they are, so that `parse(str(module))` finds them."""
    symbols: dict[int, WeightSymbol] = {}
    graph = _GraphPrinter(module.graph, "", symbols).lines("graph")
    for unused in module.weights.values():
        symbols.setdefault(id(unused), unused)
    table = _weight_table(_distinct(symbols.values()), directory)
    return "\n".join([f"irlab {VERSION}", *_header(module), "", *table, *([""] if table else []), *graph, ""])


def print_graph(graph: Graph) -> str:
    """A graph alone, without the weight table."""
    return "\n".join([*_GraphPrinter(graph, "", {}).lines("graph"), ""])


def op_texts(graph: Graph, ops: Iterable[Op], names: Mapping[Value, str]) -> dict[Op, str]:
    """The line of each of `ops` (with its regions, if any) without columns and location. `names` are used for values
    instead of the numbers that a whole text would give them."""
    printer = _GraphPrinter(graph, "", {})
    for value, name in names.items():
        printer.names[value] = name
    found: dict[Op, str] = {}
    for op in ops:
        rows = _Rows()
        printer.write(op, rows)
        rows.locs = [""] * len(rows.locs)
        found[op] = "\n".join(rows.lines("")).rstrip()
    return found


def excerpt(graph: Graph, op: Op, around: int = 5) -> str:
    """The line of `op`, marked with an arrow, with up to `around` lines before and after it; regions are left out.
    An op that has no line of its own is shown by the first op that reads it."""
    printer = _GraphPrinter(graph, "", {})
    shown = [each for each in printer.order if not is_inline(each)]
    if is_inline(op):
        op = next((each for each in shown if op.results[0] in each.operands), op)
    at = shown.index(op) if op in shown else len(shown)
    first, last = max(0, at - around), at + around + 1
    rows = _Rows()
    for each in shown[first:last]:
        printer.write(each, rows)
    rows.regions.clear()
    lines = rows.lines("")
    return "\n".join([f"{'-->' if first + i == at else '   '} {line}" for i, line in enumerate(lines)])


def printed_values(graph: Graph) -> dict[str, Value]:
    """The values of `graph`, without its regions, by the names that text gives them: `%0`, `%x`."""
    names = _GraphPrinter(graph, "", {}).names
    return {text: value for value, text in names.items() if value is not None and text.startswith("%")}


def printed_order(graph: Graph) -> list[Op]:
    """The ops in the order in which text shows them; by `seq` where a cycle leaves no better one."""
    try:
        order = graph.topo()
    except IRError:
        order = sorted(graph.ops(), key=attrgetter("seq"))
    return [op for op in order if op.graph is graph]


def is_inline(op: Op) -> bool:
    """Whether `op` is written where it is used rather than on a line of its own."""
    cls = type(op)
    if cls is not Weight and cls is not Constant:
        return False
    type_ = op.results[0].type
    return cls is Weight or (not type_.shape and isinstance(type_.element, DType))


def literal_text(value: float, dtype: DType) -> str:
    """A constant of rank 0: `f32(2.0)`, `i64(3)`, `bool(true)`."""
    if dtype.kind is Kind.FLOAT:
        return f"{dtype.name}({float_text(value)})"
    if dtype.kind is Kind.BOOL and value in (0, 1):
        return "bool(true)" if value else "bool(false)"
    return f"{dtype.name}({value_text(int(value) if isinstance(value, bool) else value)})"


def loc_text(loc: Loc | None) -> str:
    """The location as it stands behind an op; empty if nothing is known."""
    if loc is None or loc is UNKNOWN_LOC:
        return ""
    parts = [quote(loc.path)] if loc.path else []
    parts += [f"{name}={quote(text)}" for name in ("source", "made_by") if (text := getattr(loc, name))]
    return f"loc({', '.join(parts)})"


def _header(module: Module) -> list[str]:
    start = f"module {quote(module.name)}"
    if not module.metadata:
        return [start]
    entries = [f"{name_text(key)}={value_text(value)}" for key, value in module.metadata.items()]
    one_line = f"{start} {{{', '.join(entries)}}}"
    if len(one_line) <= LINE_WIDTH:
        return [one_line]
    lines = []
    for (key, value), entry in zip(module.metadata.items(), entries):
        if len(entry) > LINE_WIDTH and isinstance(value, dict):
            lines.append(f"{INDENT}{name_text(key)}={{")
            lines += [f"{INDENT * 2}{value_text(k)}: {value_text(v)}," for k, v in value.items()]
            lines.append(f"{INDENT}}},")
        else:
            lines.append(f"{INDENT}{entry},")
    return [f"{start} {{", *lines, "}"]


def _distinct(symbols: Iterable[WeightSymbol]) -> list[WeightSymbol]:
    """Equal symbols once; different ones of one name stay, for the verifier to show."""
    found: dict[str, list[WeightSymbol]] = {}
    for symbol in symbols:
        alike = found.setdefault(symbol.name, [])
        if symbol not in alike:
            alike.append(symbol)
    return [symbol for alike in found.values() for symbol in alike]


def _weight_table(symbols: Sequence[WeightSymbol], directory: Path | None) -> list[str]:
    rows = [(f"@{name_text(s.name)}", str(s.type), recipe_text(s.recipe, s.type, directory)) for s in symbols]
    names = _width([name for name, _, _ in rows], MAX_NAME_WIDTH)
    types = _width([type for _, type, _ in rows], MAX_TYPE_WIDTH)
    return [f"{name:<{names}} : {type:<{types}} = {recipe}" for name, type, recipe in rows]


def _width(cells: Iterable[str], limit: int) -> int:
    lengths = list(map(len, cells))
    widest = max(lengths, default=0)
    return widest if widest <= limit else max([length for length in lengths if length <= limit], default=0)


class _Rows:
    """The cells of a graph's lines, column by column, and the lines of regions that follow some rows."""

    def __init__(self) -> None:
        self.results: list[str] = []
        self.calls: list[str] = []
        self.types: list[str] = []
        self.locs: list[str] = []
        self.regions: dict[int, list[str]] = {}

    def append_line(self, line: str) -> None:
        """Add a row that has no columns."""
        for cells, cell in zip((self.results, self.calls, self.types, self.locs), ("", line, "", "")):
            cells.append(cell)

    def lines(self, indent: str) -> list[str]:
        """The rows in columns."""
        results, calls = _width(self.results, MAX_RESULT_WIDTH), _width(self.calls, MAX_CALL_WIDTH)
        types = _width([type for type, loc in zip(self.types, self.locs) if loc], MAX_TYPE_WIDTH)
        lines = [
            f"{indent}{result.ljust(results)} = {call.ljust(calls)} : {type.ljust(types)}  {loc}"
            if loc and result
            else f"{indent}{result.ljust(results)} = {call.ljust(calls)} : {type}"
            if result
            else f"{indent}{call}  {loc}".rstrip()
            for result, call, type, loc in zip(self.results, self.calls, self.types, self.locs)
        ]
        for row, region in reversed(self.regions.items()):
            lines[row + 1 : row + 1] = region
        return lines


class _GraphPrinter:
    """Names the values of one graph and writes its ops. Regions get a printer of their own: they are isolated."""

    def __init__(self, graph: Graph, indent: str, symbols: dict[int, WeightSymbol]) -> None:
        self.graph, self.indent, self.symbols = graph, indent, symbols
        self.order = printed_order(graph)
        self.names: dict[Value | None, str] = {None: "none"}
        self._types: dict[TensorType, str] = {}
        self._locs: dict[Loc | None, str] = {None: ""}
        self._plans: dict[type[Op], _Plan] = {}
        self._unknown = 0
        self._name_values()

    def _name_values(self) -> None:
        names, taken = self.names, set()

        def given(name: str) -> str:
            unique, again = name, 0
            while unique in taken:
                again += 1
                unique = f"{name}_{again}"
            taken.add(unique)
            return "%" + name_text(unique)

        for value in self.graph.inputs:
            names[value] = given(value.name or "")
        number = 0
        for op in self.order:
            if is_inline(op):
                names[op.results[0]] = self._inline(op)
                continue
            for value in op.results:
                if value.name is None:
                    names[value] = f"%{number}"
                    number += 1
                else:
                    names[value] = given(value.name)

    def _inline(self, op: Op) -> str:
        if isinstance(op, Weight):
            return "@" + name_text(op.symbol.name)
        return literal_text(op.value, op.type.element)  # type: ignore[attr-defined]

    def _name(self, value: Value | None) -> str:
        """The name of a value that may belong to no graph at all."""
        text = self.names.get(value)
        if text is None:
            assert value is not None
            if value.op is not None and is_inline(value.op):
                text = self._inline(value.op)
            else:
                text = f"%?{self._unknown}"
                self._unknown += 1
            self.names[value] = text
        return text

    def lines(self, opening: str) -> list[str]:
        """The graph with its signature and braces; `opening` stands before the inputs."""
        inner = self.indent + INDENT
        rows = _Rows()
        returns = []
        for op in self.order:
            if type(op) is Return:
                returns.append(self._return_line(op, inner))
            elif not is_inline(op):
                self.write(op, rows)
        return [self._signature(opening), *rows.lines(inner), *returns, self.indent + "}"]

    def _signature(self, opening: str) -> str:
        inputs = [f"{self.names[value]}: {value.type}" for value in self.graph.inputs]
        return self._wrapped(f"{self.indent}{opening}(", inputs, ") {")

    def _return_line(self, op: Op, indent: str) -> str:
        # A broken Return may have more operands than names; all of it is shown.
        names = [name_text(name) for name in op.names]  # type: ignore[attr-defined]
        names += ["?"] * (len(op.operands) - len(names))
        self._note_weights(op)
        returned = [f"{name}={self._name(value)}" for name, value in zip(names, op.operands)]
        return self._wrapped(f"{indent}return ", returned, "").rstrip()

    @staticmethod
    def _wrapped(start: str, items: list[str], end: str) -> str:
        one_line = start + ", ".join(items) + end
        if len(one_line) <= LINE_WIDTH or len(items) < 2:
            return one_line
        return start + (",\n" + " " * len(start)).join(items) + end

    def _note_weights(self, op: Op) -> None:
        for value in op.operands:
            if value is not None and type(value.op) is Weight:
                symbol = value.op.symbol
                self.symbols[id(symbol)] = symbol

    def write(self, op: Op, rows: _Rows) -> None:
        """Append the cells of one op's line."""
        cls = type(op)
        if cls is Return:
            rows.append_line(self._return_line(op, ""))
            return
        callee, writers = self._plans.get(cls) or self._plan(cls)
        names = self.names
        operands = op.operands
        while operands and operands[-1] is None:
            operands = operands[:-1]
        try:
            arguments = ", ".join([names[value] for value in operands])
        except KeyError:
            arguments = ", ".join([self._name(value) for value in operands])
        if "@" in arguments:
            self._note_weights(op)
        if cls is Call:
            callee = f"call @{name_text(op.target)}"  # type: ignore[attr-defined]
        if writers:
            parts = []
            for name, write, default, repeated in writers:
                value = getattr(op, name)
                if repeated is None or not repeated(op, value):
                    text = write(value)
                    if text != default:
                        parts.append(f"{name}={text}")
            rows.calls.append(f"{callee}({arguments}) {{{', '.join(parts)}}}" if parts else f"{callee}({arguments})")
        else:
            rows.calls.append(f"{callee}({arguments})")
        results = op.results
        if len(results) == 1:
            value = results[0]
            rows.results.append(names.get(value) or self._name(value))
            rows.types.append(self._types.get(value.type) or self._type(value.type))
        else:
            rows.results.append(", ".join([self._name(value) for value in results]))
            rows.types.append(", ".join([self._type(value.type) for value in results]))
        loc = self._locs.get(op.loc)
        if loc is None:
            loc = self._locs[op.loc] = loc_text(op.loc)
        rows.locs.append(loc)
        if cls.region_names:
            rows.regions[len(rows.calls) - 1] = self._regions(op)

    def _plan(self, cls: type[Op]) -> _Plan:
        plan = self._plans[cls] = cls.opname, _attribute_writers(cls)
        return plan

    def _type(self, type: TensorType) -> str:
        text = self._types[type] = str(type)
        return text

    def _regions(self, op: Op) -> list[str]:
        lines: list[str] = []
        for name, region in zip(op.region_names, op.regions):
            lines += _GraphPrinter(region, self.indent + INDENT * 2, self.symbols).lines(name.rstrip("_"))
        return lines


def _tells_by_default(cls: type[Op], field: Field) -> bool:
    """Whether the default says something a reader of an LLM-level op wants to see: eps=1e-06, activation="silu". Not
    so what is off, on, absent or 1."""
    return cls.opname.startswith("nn.") and field.default not in (False, None, "", 1)


def _attribute_writers(cls: type[Op]) -> list[_AttributeWriter]:
    writers: list[_AttributeWriter] = []
    for field in cls.fields:
        # The target of a call stands in its name.
        if field.name in cls.attribute_names and not (cls is Call and field.name == "target"):
            write = field_writer(field)
            default = None if field.default is REQUIRED or _tells_by_default(cls, field) else write(field.default)
            writers.append((field.name, write, default, repeats_types(field)))
    return writers
