"""How does a module live on disk? As an .ir file of text, or in an .irlab directory with the weights that it owns.

The directory holds module.ir, and weights.safetensors for owned values: those that no file holds (they were computed,
and exist in memory), or with `embed` all of them. Encoded weights are stored as their packed parts: `NAME:codes`,
`NAME:scales` ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from .errors import InputError, IRError
from .ir import Module
from .types import TensorType
from .weight_uses import replace_weights
from .weights import (
    Chunk,
    File,
    Literal,
    Parts,
    Reading,
    Readings,
    Recipe,
    WeightSymbol,
    finite_codes,
    finite_rows,
    read_alone,
    static_shape,
)
from .weights.recipe import AnyArray
from .weights.safetensors import SafetensorsWriter

TEXT_FILE: Final = "module.ir"
WEIGHTS_FILE: Final = "weights.safetensors"


def write_directory(module: Module, path: Path, embed: bool = False, jobs: int = 2) -> None:
    """Write `module` into the existing directory `path`; `embed` copies the values of all weights into it.

    Weights are streamed, in `jobs` threads. `irlab.outputs.whole_output` makes the directory appear whole or not at
    all, with `owned_bytes` as what it takes. Raises InputError for weights that cannot be read or are not finite.
    """
    for reading in directory_steps(module, path, embed):
        read_alone(reading, jobs)


def directory_steps(module: Module, path: Path, embed: bool = False) -> Readings:
    """`write_directory` by steps: for writers that read together with others."""
    from .text import print_module

    owned = owned_weights(module, embed)
    if owned:
        yield from _weights_steps(owned, path / WEIGHTS_FILE)
        module = module.clone()
        replace_weights(module.graph, {s.name: stored(s.name, s.type, path / WEIGHTS_FILE) for s in owned})
    (path / TEXT_FILE).write_text(print_module(module, path), encoding="utf-8")


def read_directory(path: Path) -> Module:
    """The module in directory `path`. Weights stay where they are until they are read. Raises InputError."""
    if not path.is_dir():
        raise InputError(f"{path} is not an .irlab directory")
    if not (path / TEXT_FILE).is_file():
        raise InputError(f"{path} holds no {TEXT_FILE}", "an .irlab directory is written by --emit ir -o NAME.irlab")
    return read_file(path / TEXT_FILE)


def read_file(file: Path) -> Module:
    """Read an .ir file; raises InputError where it is not there or is no text, ParseError where it is no IR."""
    from .text import parse_module

    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is not text", "an .ir file is UTF-8 IR text") from None
    return parse_module(text, file.parent, str(file))


def owned_bytes(module: Module, embed: bool = False) -> int:
    """The bytes of weights that `write_directory` would write."""
    types = [
        kind for symbol in owned_weights(module, embed) for kind in stored_types(symbol.name, symbol.type).values()
    ]
    return sum(math.prod(static_shape(kind)) * kind.dtype.bits // 8 for kind in types)


def owned_weights(module: Module, embed: bool = False) -> list[WeightSymbol]:
    """The weights whose values a directory must hold: computed ones, which text cannot say, or all with `embed`."""
    # Literals stand in the text, so they are copied with it.
    symbols = [symbol for symbol in module.weights.values() if not isinstance(symbol.recipe, Literal)]
    return [symbol for symbol in symbols if embed or _beyond_text(symbol.recipe)]


def _beyond_text(recipe: Recipe) -> bool:
    """Whether text cannot say how the values come about: they exist in memory only."""
    return not recipe.text_name or any(map(_beyond_text, recipe.inputs))


def stored_types(name: str, type: TensorType) -> dict[str, TensorType]:
    """The tensors that store a weight, by their names in the file."""
    if type.encoding is None:
        return {name: type}
    types = type.encoding.packed_types(static_shape(type))
    return {f"{name}:{part}": kind for part, kind in types.items()}


def stored(
    name: str, type: TensorType, file: Path, reference: Callable[[Path, str, TensorType], File] = File
) -> WeightSymbol:
    """The weight `name`, read from `file`, which `write_weights` wrote."""
    references = tuple(reference(file, part, kind) for part, kind in stored_types(name, type).items())
    return WeightSymbol(name, references[0] if type.encoding is None else Parts(type, references))


def write_weights(
    symbols: Sequence[WeightSymbol], file: Path, jobs: int, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the values of `symbols` into a safetensors file, streamed, in `jobs` threads; encoded ones as parts."""
    for reading in _weights_steps(symbols, file, metadata):
        read_alone(reading, jobs)


def _weights_steps(symbols: Sequence[WeightSymbol], file: Path, metadata: Mapping[str, str] | None = None) -> Readings:
    types: dict[str, TensorType] = {}
    for symbol in symbols:
        for name, kind in stored_types(symbol.name, symbol.type).items():
            if name in types:
                raise IRError(f"two weights would be stored as '{name}'")
            types[name] = kind
    with SafetensorsWriter(file, types, metadata) as writer:

        def take(chunk: Chunk[dict[str, AnyArray]]) -> None:
            for name, rows in chunk.value.items():
                writer.write(name, rows)

        yield Reading(symbols, _packed_rows, take)


def _packed_rows(symbol: WeightSymbol, start: int, stop: int) -> dict[str, AnyArray]:
    encoding = symbol.type.encoding
    if encoding is None:
        return {symbol.name: finite_rows(symbol, start, stop)}
    packed = encoding.pack(finite_codes(symbol, start, stop))
    return {f"{symbol.name}:{part}": rows for part, rows in packed.items()}
