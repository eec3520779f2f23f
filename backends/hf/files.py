"""How is a proven module laid out as a Hugging Face directory?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from irlab.checkpoint import INDEX_FILE, SINGLE_FILE
from irlab.errors import InputError
from irlab.ir import Module
from irlab.weights import Chunk, Reading, Readings, WeightSymbol, finite_rows
from irlab.weights.recipe import AnyArray
from irlab.weights.safetensors import SafetensorsWriter

_COMPANIONS: Final = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""What goes along with a model that is not made from the graph: its tokenizer and its terms."""


def companions(module: Module) -> list[tuple[Path, str]]:
    """The files to copy and where to, relative to the output. Raises InputError if their directory has gone."""
    named = module.metadata.get("tokenizer")
    if not named:
        return []
    directory = Path(named)
    if not directory.is_dir():
        raise InputError(f"the tokenizer's directory {directory} does not exist", "the module was made from it")
    found = {path: str(path.relative_to(directory)) for pattern in _COMPANIONS for path in directory.glob(pattern)}
    return sorted((path, name) for path, name in found.items() if path.is_file())


def shards(tensors: Sequence[WeightSymbol], limit_bytes: int) -> dict[str, list[WeightSymbol]]:
    """Which tensors go into which file: one file, or shards of at most `limit_bytes` (or one larger tensor)."""
    groups: list[list[WeightSymbol]] = [[]]
    room = limit_bytes
    for tensor in tensors:
        size = tensor.size_bytes
        if size > room and groups[-1]:
            groups.append([])
            room = limit_bytes
        groups[-1].append(tensor)
        room -= size
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def write_weights(tensors: Sequence[WeightSymbol], out: Path, limit_bytes: int) -> Readings:
    """The safetensors files, and their index if there are several; a few chunks of rows are in memory at a time."""
    layout = shards(tensors, limit_bytes)
    with ExitStack() as files:
        writer_of: dict[str, SafetensorsWriter] = {}
        for file, group in layout.items():
            types = {symbol.name: symbol.type for symbol in group}
            writer = files.enter_context(SafetensorsWriter(out / file, types, {"format": "pt"}))
            writer_of |= dict.fromkeys(types, writer)

        def take(chunk: Chunk[AnyArray]) -> None:
            writer_of[chunk.symbol.name].write(chunk.symbol.name, chunk.value)

        yield Reading(tensors, finite_rows, take)
    if len(layout) > 1:
        index = {
            "metadata": {"total_size": sum(symbol.size_bytes for symbol in tensors)},
            "weight_map": {symbol.name: file for file, group in layout.items() for symbol in group},
        }
        write_json(out / INDEX_FILE, index)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """As Hugging Face formats its files."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def copy_companions(module: Module, out: Path) -> None:
    """Copy tokenizer and licence files; links (the Hugging Face cache is made of them) are followed."""
    for source, name in companions(module):
        target = out / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)


def model_card(module: Module) -> str:
    """README.md: the licence and base model that came with the input, and what was done to the weights."""
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["irlab"]}
    for ours, theirs in (("licence", "license"), ("base_model", "base_model")):
        if module.metadata.get(ours):
            header[theirs] = module.metadata[ours]
    # JSON is YAML.
    lines = ["---", *[f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()], "---"]
    lines += ["", f"# {module.name}", "", "Written by irlab."]
    for encoding, count in module.metadata["decoded"].items():
        lines.append(f"{count} of its weights were encoded as `{encoding}` and are stored decoded.")
    return "\n".join(lines) + "\n"
