"""From IR text to a module. Every error is a ParseError with line and column, however hostile the text."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Final

from ..ir import Graph, Module, Weight
from ..types import TensorType
from ..weights import WeightSymbol
from .cursor import Cursor
from .environment import Surroundings
from .graphs import GraphReader
from .values import ValueReader
from .words import VERSION, name_text

_SHOWN_START: Final = f"IR text begins with the line 'irlab {VERSION}'"


def parse_module(text: str, directory: Path | None = None, source: str = "<text>") -> Module:
    """The module that `text` describes: the inverse of `print_module`.

    Weight files are named relative to `directory`; none is opened. `source` is the file's name, for errors.
    Raises ParseError.
    """
    # Nearly everything that is made here stays, so the cyclic collector would search in vain, again and again.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _module(text, directory, source)
    finally:
        if collecting:
            gc.enable()


def _module(text: str, directory: Path | None, source: str) -> Module:
    cursor = Cursor(text, source)
    values = ValueReader(cursor, directory)
    _version(cursor)
    module = Module(Graph())
    module.directory = directory
    if cursor.accept("module"):
        module.name = cursor.string()
        module.metadata = _metadata(cursor, values)
    surroundings = Surroundings(values, _weight_table(cursor, values))
    cursor.expect("graph", "after the weight table comes graph(inputs) { ... }")
    GraphReader(surroundings, module.graph).read()
    if cursor.peek():
        raise cursor.error(f"expected the end, found {cursor.next_word()}", "a file holds one graph")
    for symbol, seq in surroundings.unused():
        module.graph.attach(Weight(symbol), seq)
    return module


def _version(cursor: Cursor) -> None:
    if not cursor.accept("irlab"):
        raise cursor.error("this is not IR text", _SHOWN_START)
    cursor.skip_space()
    at = cursor.pos
    version = ValueReader(cursor, None).value()
    if version != VERSION:
        raise cursor.error(f"version {version} of the text form", f"this irlab reads version {VERSION}", at)


def _metadata(cursor: Cursor, values: ValueReader) -> dict[str, object]:
    metadata: dict[str, object] = {}
    if not cursor.accept("{"):
        return metadata
    while not cursor.accept("}"):
        cursor.skip_space()
        at = cursor.pos
        key = cursor.name("the name of a metadata entry")
        if key in metadata:
            raise cursor.error(f"the metadata entry '{key}' stands twice", "", at)
        cursor.expect("=")
        metadata[key] = values.value(list)
        if not cursor.accept(","):
            cursor.expect("}", "separate entries by commas")
            break
    return metadata


def _weight_table(cursor: Cursor, values: ValueReader) -> dict[str, WeightSymbol]:
    """The symbols by their token in text, `@name`."""
    table: dict[str, WeightSymbol] = {}
    while cursor.peek() == "@":
        at = cursor.pos
        cursor.expect("@")
        name = cursor.name("the name of a weight")
        token = "@" + name_text(name)
        if token in table:
            raise cursor.error(f"the weight {token} is declared twice", "one line for each name", at)
        cursor.expect(":", "@name : type = recipe")
        type: TensorType = values.tensor_type()
        cursor.expect("=", "@name : type = recipe")
        table[token] = WeightSymbol(name, values.recipe(type))
    return table
